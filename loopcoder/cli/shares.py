"""Tables of tokens by domain, language and source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from loopcoder.cli.listing import table
from loopcoder.data.labels import Label
from loopcoder.data.sampler import Skipped
from loopcoder.errors import counted

KINDS = ("language", "source")
"""What a corpus with files of labels knows of its documents besides their domain."""
NO_LABELS = "this corpus does not record the language and the source of its documents"
_MOST = 20
"""Rows of a table; --json has all."""

Column = tuple[str, Mapping[str, str]]
"""A heading, and the cells by the names of their rows."""


def summed(counts: Iterable[tuple[Label, int]], kind: str) -> Counter[str]:
    """Return counts by label as counts by what a label has as its domain, language or source."""
    found: Counter[str] = Counter()
    for label, count in counts:
        if count:
            found[str(getattr(label, kind) or "not recorded")] += count
    return found


def shares(kind: str, tokens: Mapping[str, int], *columns: Column) -> list[list[str]]:
    """Return the rows of a table: the names of a kind with their tokens and shares, most first."""
    rows = [[kind, "tokens", "share", *(heading for heading, _ in columns)]]
    total = sum(tokens.values()) or 1
    ordered = sorted(tokens.items(), key=lambda item: -item[1])
    for name, count in ordered[:_MOST]:
        cells = [column.get(name, "") for _, column in columns]
        rows.append([f"  {name}", f"{count:,}", f"{count / total:.1%}", *cells])
    if rest := ordered[_MOST:]:
        count = sum(count for _, count in rest)
        rows.append([f"  {len(rest)} more", f"{count:,}", f"{count / total:.1%}"])
    return rows


def in_one(parts: Sequence[list[list[str]]]) -> str:
    """Format tables one below the other, in the same columns."""
    rows = [row for part in parts for row in [*part, []]][:-1]
    width = max(map(len, rows))
    return table([[*row, *[""] * (width - len(row))] for row in rows])


def formatted(values: Mapping[str, float], how: Callable[[float], str]) -> dict[str, str]:
    """Return the cells of a column."""
    return {name: how(value) for name, value in values.items()}


def told_of_skip(skipped: Skipped) -> str:
    """Return what `data.skip` left out, as a line."""
    last = skipped.sample + skipped.samples - 1
    return (
        f"left out before step {skipped.step}: {counted(skipped.samples, 'sequence')}, samples "
        f"{skipped.sample} to {last} of data stage {skipped.stage + 1}"
    )
