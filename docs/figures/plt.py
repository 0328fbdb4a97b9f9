"""Draw plt.svg, the README's figure of the Parallel Loop Transformer: `python docs/figures/plt.py`.

SVG by hand rather than by a plotting library: it is a drawing, and stays small and sharp. The
background is a shape of its own because GitHub shows the image on a white or a dark page.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 1200, 735

TIMES, MINUS, ARROW, DOTS, DOT = "\u00d7", "\u2212", "\u2192", "\u2026", "\u00b7"
INK, MUTED, LINE = "#1f2933", "#5b6773", "#7b8794"
PAPER, PANEL, EMPTY = "#ffffff", "#f5f7fa", "#c5ccd3"
BLUE, BLUE_FILL = "#0072B2", "#dcecf7"  # loop 0 and its keys and values
ORANGE, ORANGE_FILL = "#D55E00", "#fbe6d8"  # later loops and their own window
GREEN, GREEN_FILL = "#00795a", "#d9f0e8"  # embedding, head


def text(
    x: float,
    y: float,
    words: str,
    *,
    size: float = 16,
    color: str = INK,
    weight: str = "normal",
    anchor: str = "middle",
    italic: bool = False,
) -> str:
    """Return one line of text; (x, y) is its anchor on the baseline."""
    style = ' font-style="italic"' if italic else ""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" font-weight="{weight}" '
        f'text-anchor="{anchor}"{style}>{escape(words)}</text>'
    )


def box(
    x: float,
    y: float,
    w: float,
    h: float,
    *,
    fill: str,
    stroke: str,
    radius: float = 10,
    dash: str = "",
) -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{radius}" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="1.6"{dashed}/>'
    )


def arrow(path: str, color: str = LINE, *, width: float = 2, dash: str = "") -> str:
    """Return a path that ends in an arrow head; svg() defines one for each color."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{width}"{dashed} '
        f'marker-end="url(#head{color.lstrip("#")})"/>'
    )


def layers(x: float, y: float, title: str, *, color: str, fill: str, lines: list[str]) -> str:
    """Return the block of layers in one loop: three sheets, the front one with text."""
    parts = [
        box(x + 10 - 5 * i, y - 10 + 5 * i, 190, 150, fill=fill, stroke=color) for i in range(3)
    ]
    parts.append(text(x + 95, y + 40, title, size=18, weight="bold", color=color))
    parts += [text(x + 95, y + 72 + 24 * i, line, size=15) for i, line in enumerate(lines)]
    return "\n".join(parts)


def flow() -> list[str]:
    """Return the upper half: embedding, loop 0, the shift, later loops, head."""
    y = 215  # the height of the residual stream
    return [
        text(40, 46, "Parallel Loop Transformer", size=24, weight="bold", anchor="start"),
        text(
            40,
            74,
            "one block of L layers, run R times with the same weights; "
            "the loss is taken after the last loop",
            size=16,
            color=MUTED,
            anchor="start",
        ),
        # tokens and embedding
        text(72, y + 6, "tokens", size=16),
        arrow(f"M102 {y} H126"),
        box(130, y - 30, 110, 60, fill=GREEN_FILL, stroke=GREEN),
        text(185, y - 3, "embedding", size=16),
        text(185, y + 19, "E", size=17, weight="bold", color=GREEN),
        arrow(f"M240 {y} H286"),
        text(263, y - 9, "h = E", size=13, color=MUTED),
        # loop 0
        layers(
            290,
            y - 75,
            "loop 0",
            color=BLUE,
            fill=BLUE_FILL,
            lines=["L layers", "causal attention", "keeps K, V"],
        ),
        arrow(f"M490 {y} H516"),
        # norm and shift
        box(520, y - 30, 96, 60, fill=PANEL, stroke=LINE),
        text(568, y - 4, "RMSNorm", size=15),
        text(568, y + 17, "(shared)", size=13, color=MUTED),
        arrow(f"M616 {y} H640"),
        box(644, y - 30, 86, 60, fill=PANEL, stroke=LINE),
        text(687, y - 4, "shift", size=15, weight="bold"),
        text(687, y + 17, f"t{MINUS}1 {ARROW} t", size=13, color=MUTED),
        arrow(f"M730 {y} H772"),
        text(749, y - 9, f"{TIMES} b", size=14, color=ORANGE, weight="bold"),
        # sum with the embedding
        f'<circle cx="790" cy="{y}" r="16" fill="{PAPER}" stroke="{ORANGE}" stroke-width="2"/>',
        text(790, y + 7, "+", size=22, weight="bold", color=ORANGE),
        arrow(f"M185 {y - 30} V118 H790 V{y - 20}", GREEN),
        text(806, 150, f"{TIMES} a", size=14, color=GREEN, weight="bold", anchor="start"),
        text(487, 111, "E enters every later loop again", size=14, color=GREEN),
        arrow(f"M806 {y} H836", ORANGE),
        # later loops
        layers(
            840,
            y - 75,
            f"loop 1 {DOTS} R{MINUS}1",
            color=ORANGE,
            fill=ORANGE_FILL,
            lines=["the same L layers", "gated attention:", "shared + window"],
        ),
        arrow(f"M1040 {y} H1060"),
        box(1064, y - 30, 96, 60, fill=GREEN_FILL, stroke=GREEN),
        text(1112, y - 4, "RMSNorm,", size=15),
        text(1112, y + 17, "head", size=15, weight="bold", color=GREEN),
        # the loop back
        arrow(f"M1047 {y} V366 H568 V{y + 34}", ORANGE, dash="6 5"),
        text(
            808,
            388,
            f"until all R loops are done: h = a{DOT}E + b{DOT}shift(RMSNorm(h))",
            size=15,
            color=ORANGE,
        ),
        # shared K/V
        arrow(f"M385 {y + 75} V330 H935 V{y + 79}", BLUE, width=2.6),
        text(
            584, 321, "loop 0's K, V: read by every later loop", anchor="start", size=15, color=BLUE
        ),
    ]


def cells(x: float, y: float, filled: range, color: str, count: int = 22) -> list[str]:
    size, gap = 17, 3
    return [
        f'<rect x="{x + i * (size + gap)}" y="{y}" width="{size}" height="{size}" rx="3" '
        f'fill="{color if i in filled else PAPER}" stroke="{color if i in filled else EMPTY}"/>'
        for i in range(count)
    ]


def attention() -> list[str]:
    """Return the lower left: what a query of a later loop sees."""
    x, y = 40, 415
    now = 17  # the query's position among the cells
    column = x + 24 + now * 20 + 8.5
    return [
        box(x, y, 620, 290, fill=PANEL, stroke="#d5dbe1"),
        text(
            x + 24,
            y + 34,
            "attention of a later loop, one query at t",
            size=17,
            weight="bold",
            anchor="start",
        ),
        text(column, y + 66, "t", size=15, italic=True, weight="bold"),
        *cells(x + 24, y + 76, range(now + 1), BLUE),
        text(x + 478, y + 90, "global", size=15, weight="bold", color=BLUE, anchor="start"),
        text(
            x + 24,
            y + 116,
            "loop 0's K, V at every position up to t",
            size=14,
            color=MUTED,
            anchor="start",
        ),
        *cells(x + 24, y + 140, range(now - 4, now + 1), ORANGE),
        text(x + 478, y + 154, "window", size=15, weight="bold", color=ORANGE, anchor="start"),
        text(
            x + 24,
            y + 180,
            "this loop's own K, V: 65 keys, 64 to the left and t itself",
            size=14,
            color=MUTED,
            anchor="start",
        ),
        f'<text x="{x + 24}" y="{y + 222}" font-size="18" fill="{INK}" text-anchor="start">'
        f'output = g · <tspan fill="{BLUE}" font-weight="bold">global</tspan> + (1 {MINUS} g) · '
        f'<tspan fill="{ORANGE}" font-weight="bold">window</tspan></text>',
        text(
            x + 24,
            y + 252,
            "g = sigmoid(w · RMSNorm(h) + bias): one scalar per head and token",
            size=14,
            color=MUTED,
            anchor="start",
        ),
    ]


def diagonal() -> list[str]:
    """Return the lower right: why the shift lets all loops of a token run at once."""
    x, y = 690, 415
    columns, rows = [x + 130 + 95 * i for i in range(4)], [y + 224 - 58 * r for r in range(3)]
    parts = [
        box(x, y, 470, 290, fill=PANEL, stroke="#d5dbe1"),
        text(
            x + 24,
            y + 34,
            "the shift lets a token's loops run at once",
            size=17,
            weight="bold",
            anchor="start",
        ),
        f'<rect x="{columns[3] - 34}" y="{rows[2] - 26}" width="68" '
        f'height="{rows[0] - rows[2] + 52}" rx="12" '
        'fill="#fff6d6" stroke="#c79a00" stroke-width="1.6"/>',
    ]
    for r, row in enumerate(rows):
        parts.append(
            text(
                x + 24,
                row + 5,
                f"loop {r}",
                size=15,
                anchor="start",
                color=ORANGE if r else BLUE,
                weight="bold",
            )
        )
        for i, column in enumerate(columns):
            color, fill = (ORANGE, ORANGE_FILL) if r else (BLUE, BLUE_FILL)
            parts.append(
                f'<circle cx="{column}" cy="{row}" r="15" fill="{fill}" stroke="{color}" '
                'stroke-width="1.8"/>'
            )
            if r + 1 < len(rows) and i + 1 < len(columns):
                parts.append(
                    arrow(
                        f"M{column + 13} {row - 9} L{columns[i + 1] - 17} {rows[r + 1] + 12}",
                        LINE,
                        width=1.8,
                    )
                )
    parts += [
        text(column, y + 268, label, size=14, italic=True, color=MUTED)
        for column, label in zip(
            columns, (f"t{MINUS}3", f"t{MINUS}2", f"t{MINUS}1", "t"), strict=True
        )
    ]
    parts.append(
        text(
            x + 24,
            y + 60,
            f"input from loop r{MINUS}1 at t{MINUS}1: one batch per token",
            size=14,
            color=MUTED,
            anchor="start",
        )
    )
    return parts


def svg() -> str:
    """Return the whole drawing."""
    heads = "".join(
        f'<marker id="head{c.lstrip("#")}" viewBox="0 0 10 10" refX="8" refY="5" '
        f'markerWidth="6.5" markerHeight="6.5" orient="auto">'
        f'<path d="M0 0 L10 5 L0 10 z" fill="{c}"/></marker>'
        for c in (LINE, BLUE, ORANGE, GREEN)
    )
    body = "\n".join([*flow(), *attention(), *diagonal()])
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" \
font-family="Helvetica, Arial, 'DejaVu Sans', sans-serif" role="img" aria-labelledby="title">
<title id="title">Parallel Loop Transformer: the same layers run R times</title>
<defs>{heads}</defs>
<rect width="{WIDTH}" height="{HEIGHT}" rx="14" fill="{PAPER}"/>
{body}
</svg>
"""


if __name__ == "__main__":
    out = Path(__file__).with_suffix(".svg")
    out.write_text(svg())
    print(out)
