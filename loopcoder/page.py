"""Pieces of a page for people: text and tables as HTML, without anything external.

Every piece of text passes through `text`, so that a name in the data stays a name.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NOT_RECORDED = "not recorded"
_LONG_CHARS = 24
"""Text in a cell that may be broken anywhere: paths and hashes."""

_STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --ink: #1c1e21; --soft: #5c636b; --line: #d9dcdf;
  --card: #ffffff; --a: #2f6db3; --b: #c46a1b; --ghost: #b4bac1; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --ink: #e6e8ea; --soft: #9da5ad;
  --line: #363b41; --card: #1d2024; --a: #6aa5e6; --b: #e59a52; --ghost: #5b636c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 68rem; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", "Liberation Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p { margin: .4rem 0; max-width: 46rem; }
.soft, .none { color: var(--soft); }
.none { font-style: italic; }
code { font: .88em ui-monospace, "Liberation Mono", monospace; overflow-wrap: anywhere; }
nav ol { margin: .3rem 0; padding-left: 1.4rem; columns: 16rem; }
a { color: var(--a); }
details { margin: .4rem 0; }
summary { cursor: pointer; }
pre { margin: .2rem 0 1rem; padding: .6rem .8rem; background: var(--card); white-space: pre-wrap;
  border: 1px solid var(--line); border-radius: 6px; overflow-wrap: anywhere;
  font: .84em/1.45 ui-monospace, "Liberation Mono", monospace; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .75rem;
  margin: 1.25rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .88rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
caption { text-align: left; color: var(--soft); font-size: .88rem; padding: .3rem 0; }
th { color: var(--soft); font-weight: 600; font-size: .88rem; vertical-align: bottom; }
td.long { overflow-wrap: anywhere; min-width: 12rem; }
th.n { text-align: right; }
td.n { text-align: right; white-space: nowrap; }
tr.sum td { font-weight: 600; }
td svg { display: block; margin-top: .35rem; }
figure { margin: .75rem 0 1rem; }
figure svg { display: block; width: 100%; max-width: 46rem; height: auto; }
figure.full svg { max-width: none; }
dl { max-width: 46rem; } dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0 0 0 1.2rem; }
figcaption { color: var(--soft); font-size: .88rem; margin-bottom: .3rem; }
svg text { fill: var(--ink); font-size: 12px; font-family: inherit; }
svg .soft { fill: var(--soft); }
svg line { stroke: var(--line); }
.a { fill: var(--a); } .b { fill: var(--b); } .ghost { fill: var(--ghost); }
.key { display: inline-block; width: .75em; height: .75em; margin: 0 .35em 0 .9em; }
.key:first-child { margin-left: 0; }
.key.a { background: var(--a); } .key.b { background: var(--b); }
.key.ghost { background: var(--ghost); }
@media (max-width: 56rem) { body { padding: 1.25rem 1rem 3rem; } table { font-size: .92rem; }
  th, td { padding-right: .55rem; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; }
  :root { --page: #fff; --ink: #000; --soft: #444; --line: #bbb; --card: #fff; --a: #2f6db3;
    --b: #c46a1b; --ghost: #b4bac1; }
  .key, svg { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  .wide { overflow: visible; } tr, figure, .tile { break-inside: avoid; }
  h2, h3 { break-after: avoid; } thead { display: table-header-group; } }
"""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Html:
    """Return anything as HTML: escaped, unless it is HTML already."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(printable(str(value)), quote=True))


def printable(value: str) -> str:
    """Spell out lone surrogates and control characters, which no page and no terminal shows."""
    plain = value.encode(errors="backslashreplace").decode()
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in plain)


def element(name: str, *content: object, **attributes: object) -> Html:
    """Return an element; `class_` is class, and other underscores of attributes are hyphens."""
    named = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{named}>{join(content)}</{name}>")


def join(parts: Iterable[object]) -> Html:
    """Return pieces one after the other."""
    return Html("".join(text(part) for part in parts))


def missing(what: str = "") -> Html:
    """Say that something is not in the manifest."""
    return element("span", f"{what}: {NOT_RECORDED}" if what else NOT_RECORDED, class_="none")


@dataclass(frozen=True)
class Number:
    """A cell or tile with a number; None is one that was not recorded."""

    value: float | None
    form: str = ",.0f"

    def html(self) -> Html:
        if self.value is None:
            return missing()
        # no -0.000
        shown = f"{self.value:{self.form}}"
        is_zero = self.form.startswith("+") and float(shown.rstrip("%").replace(",", "")) == 0
        return text(f"{0:{self.form}}" if is_zero else shown)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    sums: bool = False,
    caption: object = "",
) -> Html:
    """Return a table; columns with numbers are right-aligned, `sums` marks the last row."""
    if not rows:
        return element("p", "None.", class_="soft")
    numeric = [
        any(isinstance(row[i], Number) for row in rows) and not isinstance(rows[0][i], str)
        for i in range(len(head))
    ]

    def cell(name: str, content: object, is_number: bool) -> Html:
        shown = content.html() if isinstance(content, Number) else text(content)
        if is_number:
            return element(name, shown, class_="n")
        is_long = len(shown) > _LONG_CHARS and "<" not in shown
        return element(name, shown, class_="long") if is_long else element(name, shown)

    body = [
        element(
            "tr",
            *(cell("td", content, n) for content, n in zip(row, numeric, strict=True)),
            **({"class_": "sum"} if sums and row is rows[-1] else {}),
        )
        for row in rows
    ]
    titles = element("tr", *(cell("th", name, n) for name, n in zip(head, numeric, strict=True)))
    top = element("thead", titles) if any(head) else ""
    title = element("caption", caption) if caption else ""
    inner = element("table", title, top, element("tbody", *body))
    return element("div", inner, class_="wide")


def tiles(entries: Sequence[tuple[str, object]]) -> Html:
    """Return (label, figure) as a row of cards."""
    shown = (
        element(
            "div",
            element("b", figure.html() if isinstance(figure, Number) else figure),
            element("span", label),
            class_="tile",
        )
        for label, figure in entries
    )
    return element("div", *shown, class_="tiles")


def legend(*entries: tuple[str, str]) -> Html:
    """Return the meaning of colours: (class, label)."""
    return join(join((element("span", class_=f"key {kind}"), name)) for kind, name in entries)


def figure(caption: object, drawing: object) -> Html:
    return element("figure", element("figcaption", caption), drawing)


def page(title: str, *content: object) -> str:
    """Return the whole page. It may load nothing: the policy in its head says so to the browser."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>{text(title)}</title><style>{_STYLE}</style>"
    )
    body = f"<head>{head}</head>\n<body>{join(content)}</body>"
    return f'<!doctype html>\n<html lang="en">{body}</html>\n'
