"""The report's part on what was left out, with examples, and on what each source and package
gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipeline.report.charts import small_bar
from data_pipeline.report.values import Manifest, as_counts, as_list, as_number, at
from loopcoder.page import Html, Number, element, join, missing, table

_REASONS = 10
_SUFFIXES = 20
_NAMED = 10
"""Suffixes that a line names."""
KEPT_ELSEWHERE = "held_out"
"""Not in the training split, but not lost either."""


def dropped(manifest: Manifest) -> Html:
    """Return the most frequent reasons with examples, and the suffixes of unknown types."""
    if not isinstance(at(manifest, "dropped"), Mapping):
        return element("p", missing("list of what was dropped"))
    found = [
        row
        for row in as_list(at(manifest, "dropped", "reasons"))
        if row.get("reason") != KEPT_ELSEWHERE
    ]
    where = "The list of all is in the folder dropped/ of the corpus"
    if at(manifest, "dropped", "listed") is not True:
        where = "There is no complete list (data.build.list_drops)"
    entries = Number(as_number(at(manifest, "dropped", "entries"))).html()
    about = join(
        (f"{where}, ", entries, " entries; `loopcoder data show CORPUS --dropped REASON` has more.")
    )
    rows = [line for row in found[:_REASONS] for line in _examples(row)]
    suffixes = as_counts(at(manifest, "dropped", "unknown_suffixes"))
    shown = list(suffixes.items())[:_SUFFIXES]
    largest = max(suffixes.values(), default=0) or 1
    parts = [
        element("p", about, class_="soft"),
        table(("reason", "number", "for example"), rows),
        element("h3", "Suffixes of unknown type"),
        table(
            ("suffix", "files", ""),
            [(suffix, Number(n), small_bar(n / largest, "b")) for suffix, n in shown],
        ),
    ]
    rest = sum(suffixes.values()) - sum(n for _, n in shown)
    if rest:
        parts.append(element("p", Number(rest).html(), " files have others.", class_="soft"))
    return join(parts)


def _examples(row: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    """Yield a line for each example of a reason, which is named in the first."""
    reason = str(row.get("reason", "?")).replace("_", " ")
    unit = f"{row.get('unit')}s" if row.get("unit") else ""
    named = f"{reason} ({row.get('stage', '?')}, {unit})"
    number = Number(as_number(row.get("number")))
    for i, example in enumerate(as_list(row.get("examples")) or [{}]):
        yield (named, number, describe(example)) if i == 0 else ("", "", describe(example))


def describe(entry: Mapping[str, Any]) -> str:
    """Return an entry of the list for people: where it is, its size, what stays in its place."""
    if not entry:
        return ""
    text = str(entry.get("path", "?"))
    for name, before in (("row", ", row "), ("piece", ", piece ")):
        if name in entry:
            text += f"{before}{entry[name]}"
    size = as_number(entry.get("bytes"))
    text += f" ({size:,.0f} bytes)" if size is not None else ""
    if files := as_list(entry.get("files")):
        text += f": {len(files):,} files from {describe(files[0])} to {describe(files[-1])}"
    stays = entry.get("stays")
    return f"{text}; {describe(stays)} stays" if isinstance(stays, Mapping) else text


def origins(manifest: Manifest) -> Html:
    """Return documents, bytes and tokens of each source and package."""
    rows = as_list(at(manifest, "origins"))
    if not rows:
        return element("p", missing("what each source gives"))
    parts = [element("p", element("b", "Warning: "), warning) for warning in warnings_of(rows)]
    parts.append(
        element(
            "p",
            "Kept is what is left after cleaning and deduplication; taken is what the quotas take "
            "of it, copies included.",
            class_="soft",
        )
    )
    keys = ("documents", "bytes", "tokens", "taken_tokens")
    parts.append(
        table(
            ("source", "package", "documents kept", "bytes kept", "tokens kept", "tokens taken"),
            [
                (
                    str(row.get("source", "?")) if not row.get("package") else "",
                    str(row.get("package") or "all"),
                    *(Number(as_number(row.get(key))) for key in keys),
                )
                for row in rows
            ],
        )
    )
    return join(parts)


def suffixes_in_words(suffixes: Mapping[str, int]) -> list[str]:
    """Return a line on the files of unknown type, or none."""
    most = list(suffixes.items())[:_NAMED]
    rest = sum(suffixes.values()) - sum(n for _, n in most)
    names = [f"{n:,} {suffix or 'without'}" for suffix, n in most]
    if not names:
        return []
    return [f"suffixes of unknown_type: {', '.join(names + [f'{rest:,} others'] * bool(rest))}"]


def warnings_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a warning for every source and package that gives nothing."""
    found = []
    for row in rows:
        if row.get("documents") == 0:
            package = f"package {row['package']} of " if row.get("package") else ""
            counts = as_counts(row.get("left_out"))
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in counts.items())
            found.append(
                f"{package}source {row.get('source')} gives nothing to the corpus "
                f"({'left out: ' + reasons if reasons else 'no file of it was read'})"
            )
    return found
