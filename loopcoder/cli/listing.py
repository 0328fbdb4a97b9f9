"""Lists for a terminal: no line over 100 columns, unless a path or a number is."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

COLUMNS = 100
_LONGEST = 60
"""Characters of one part of a text above which it is cut; --json has the whole of it."""


@dataclass(frozen=True)
class Listed:
    """A thing in a list: a folder on a line of its own, its numbers below it."""

    title: str
    cells: list[str]
    text: str = ""
    """Beside the title, or where it is too long for that on lines below the numbers."""
    notes: list[str] = field(default_factory=list)
    """Lines below the numbers."""


def listing(header: list[str], entries: Sequence[Listed]) -> str:
    """Format a list: the header once, then two lines or more for each entry."""
    rows = [header, *(entry.cells for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def row(cells: list[str]) -> str:
        return "  " + "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip()

    lines = [row(header)]
    for entry in entries:
        text = cut(entry.text)
        title, notes = f"{entry.title}  {text}".rstrip(), entry.notes
        if len(title) > COLUMNS:
            title, notes = entry.title, [text, *notes]
        lines += [title, row(entry.cells), *(line for note in notes for line in _wrapped(note))]
    return "\n".join(lines)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Format a table of numbers: names on the left, each with its numbers below those of the
    first row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *numbers]).rstrip())
    return "\n".join(lines)


def cut(text: str) -> str:
    """Return a text with an ellipsis in every part of it that is very long."""
    parts = text.split(" ")
    return " ".join(p if len(p) <= _LONGEST else p[: _LONGEST - 1] + "…" for p in parts)


def few(names: Sequence[str], most: int = 3) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        COLUMNS,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
