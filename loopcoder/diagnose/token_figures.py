"""Figures of which tokens gain: shares of loops, domains and languages, leaving early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loopcoder.diagnose.definitions import VARIANTS
from loopcoder.diagnose.panels import (
    Drawing,
    Named,
    bars,
    grid,
    legend,
    legend_rows,
    look,
    panel,
)
from loopcoder.diagnose.reading import Point, by_loop, count_of, cut
from loopcoder.diagnose.results import ALL
from loopcoder.page import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_GROUPS = 24
"""Domains and languages that the figure shows; the table has them all."""
_SHARES = ("output_shift", "attention_change", "largest_shift")
_DARK, _LIGHT = "#111111", "#fefefe"
"""Of numbers on colored bars, on a dark page too: not the page's own ink."""
_RULES = {"kl": "KL divergence from the loop before"}
EXITS = (
    "All loops of a token are decoded at once, as one batch, which is what a Parallel Loop "
    "Transformer is for; a token that leaves early then saves almost nothing, so exits are a "
    "diagnostic here and not a speed-up."
)


def token_figures(shown: Sequence[Named]) -> list[Drawing]:
    """Return the figures that there are values for."""
    found = (_concentration(shown), _by_group(shown), _exits(shown))
    return [drawing for drawing in found if drawing is not None]


def _concentration(shown: Sequence[Named]) -> Drawing | None:
    """Return the share of each loop as stacked bars, a row for each checkpoint in which there are
    several."""
    shares = {
        variant: [
            (one, points)
            for one in shown
            if len(points := by_loop(one.diagnosis, "concentration", variant)) > 1
        ]
        for variant in _SHARES
    }
    shares = {variant: found for variant, found in shares.items() if found}
    if not shares:
        return None
    having = sorted({one.index: one for found in shares.values() for one, _ in found}.items())
    rows = {index: row for row, (index, _) in enumerate(having)}
    loops = sorted({loop for found in shares.values() for _, points in found for loop in points})

    def draw_on(figure: Figure) -> None:
        axes = grid(figure, len(shares), share_y=True)
        for ax, (variant, found) in zip(axes, shares.items(), strict=True):
            for one, points in found:
                left = 0.0
                for loop, point in sorted(points.items()):
                    _share(ax, rows[one.index], left, point.value, loop)
                    left += point.value
            panel(ax, VARIANTS[variant].removeprefix("of ").capitalize(), "share", "")
            ax.set_yticks(range(len(having)), [one.label for _, one in having])
            ax.set_ylim(len(having) - 0.5, -0.5)
            ax.set_xlim(0, 1)
            ax.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
            ax.grid(visible=False)
        kinds = [(f"loop {n}", {"color": look(n - 1)["color"], "linewidth": 6}) for n in loops]
        legend(figure, kinds)

    return Drawing(
        "concentration",
        "Which loops change the tokens",
        "Share of each loop from the second on: of the output shift, of the attention change, and "
        "of tokens whose largest output shift it brings.",
        draw_on,
        1.1 + 0.34 * len(having),
    )


def _share(ax: Axes, row: int, left: float, share: float, loop: int) -> None:
    color = look(loop - 1)["color"]
    ax.barh(row, share, left=left, height=0.7, color=color)
    if share >= 0.12:
        red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
        is_bright = 0.299 * red + 0.587 * green + 0.114 * blue > 130
        ink = _DARK if is_bright else _LIGHT
        place = (left + share / 2, row)
        ax.text(*place, f"{share:.0%}", ha="center", va="center", color=ink, fontsize=8)


def _gains(one: Named) -> dict[str, Point]:
    """Return by how much loop 2 lowers the loss, by group; paired by token if that was measured."""
    found = {}
    for group in one.diagnosis.groups():
        paired = by_loop(one.diagnosis, "loss_gain", group=group)
        losses = by_loop(one.diagnosis, "loss", group=group)
        if 2 in paired:
            found[group] = paired[2]
        elif {1, 2} <= losses.keys():
            found[group] = losses[1].minus(losses[2])
    return found


def _by_group(shown: Sequence[Named]) -> Drawing | None:
    """Return what loop 2 brings by domain and language, with intervals."""
    having = [(one, gains) for one in shown if len(gains := _gains(one)) > 1]
    if not having:
        return None
    every = dict.fromkeys(group for _, gains in having for group in gains)
    sizes = {
        g: max(count_of(one.diagnosis, "loss", "", g) or 0 for one, _ in having) for g in every
    }
    # domains before languages, which may be many: the largest of these
    ordered = sorted(every, key=lambda g: (g != ALL, g.startswith("language/"), -sizes[g], g))
    groups = ordered[:MOST_GROUPS]

    def draw_on(figure: Figure) -> None:
        ax = figure.subplots()
        for i, (one, gains) in enumerate(having):
            aside = ((i + 0.5) / len(having) - 0.5) * 0.7
            rows = [row for row, group in enumerate(groups) if group in gains]
            points = [gains[groups[row]] for row in rows]
            ax.errorbar(
                [point.value for point in points],
                [row + aside for row in rows],
                xerr=bars(points),
                **{**one.look, "linestyle": "none"},
                markersize=4,
                capsize=2,
                elinewidth=1,
            )
        panel(ax, "Loss at loop 1 less loss at loop 2", "nats / token", "")
        ax.axvline(0.0, color="#999999", linewidth=0.8)
        ax.set_yticks(range(len(groups)), [cut(printable(g)) for g in groups], fontsize=8.5)
        ax.set_ylim(len(groups) - 0.5, -0.5)
        legend(figure, [(one.label, one.look) for one, _ in having])

    rest = len(ordered) - len(groups)
    return Drawing(
        "loss_gain_by_group",
        "What loop 2 brings, by domain and language",
        "Loss read after loop 1 less that after loop 2 of the same model, with 95% intervals: of "
        "differences paired by token where these were measured, or else of two losses taken to be "
        "independent, which is too wide." + (f" {rest} more are in the table." if rest else ""),
        draw_on,
        1.0
        + len(groups) * max(0.24, 0.09 * len(having))
        + legend_rows([one.label for one, _ in having]),
    )


def _exits(shown: Sequence[Named]) -> Drawing | None:
    """Return loss against mean loops of tokens that leave early."""
    having = [one for one in shown if one.diagnosis.exits]
    if not having:
        return None
    rules = list(dict.fromkeys(e.rule for one in having for e in one.diagnosis.exits))

    def draw_on(figure: Figure) -> None:
        axes = grid(figure, len(rules), 2, share_y=True)
        for i, (ax, rule) in enumerate(zip(axes, rules, strict=True)):
            for one in having:
                found = sorted(
                    (e.mean_loops, e.loss) for e in one.diagnosis.exits if e.rule == rule
                )
                if found:
                    ax.plot(*zip(*found, strict=True), markersize=5, **one.look)
            y_label = "loss at the exit (nats / token)" if i % 2 == 0 else ""
            panel(ax, f"Exit by {_RULES.get(rule, rule)}", "mean loops of a token", y_label)
        legend(figure, [(one.label, one.look) for one in having])

    height = 3.0 * -(-len(rules) // 2) + legend_rows([one.label for one in having])
    caption = f"One marker for each threshold. {EXITS}"
    return Drawing("exits", "Tokens that leave early", caption, draw_on, height)
