"""The report's part on stages: what they dropped and found, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.report.charts import small_bar
from data_pipeline.report.details import pairs
from data_pipeline.report.values import (
    Manifest,
    as_counts,
    as_list,
    as_number,
    at,
    stage_named,
    sum_of,
)
from loopcoder.page import Html, Number, element, join, missing, table, tiles

_CONTAMINATED = "contaminated_"
_HIT = "hit_"


def drops(manifest: Manifest) -> Html:
    """Return what every stage took in and handed on, and why it dropped the rest."""
    stages = as_list(at(manifest, "stages"))
    if not stages:
        return element("p", missing("stages"))
    flow = []
    for entry in stages:
        taken = as_number(entry.get("rows_in"))
        found = as_counts(entry.get("drops"))
        dropped = sum(found.values()) if isinstance(entry.get("drops"), Mapping) else None
        share = dropped / taken if dropped is not None and taken else None
        handed = as_number(entry.get("rows_out"))
        row = (Number(taken), Number(handed), Number(dropped), Number(share, ".2%"))
        flow.append((str(entry.get("stage", "?")), *row, small_bar(share or 0, "b")))
    reasons = [row for entry in stages for row in _reasons(entry)]
    parts = [
        element(
            "p",
            "Every stage accounts for every document: in = out + dropped. Documents that are held "
            "out, or that the quotas leave out, count as dropped there; copies and pieces of long "
            "documents count as documents.",
            class_="soft",
        ),
        table(("stage", "documents in", "documents out", "dropped", "of those in", ""), flow),
        element("h3", "Reasons"),
        table(("stage", "reason", "documents", "of those in", ""), reasons),
    ]
    for key, title in (("file_drops", "Files left out"), ("notes", "Repairs and notes")):
        rows = [row for entry in stages for row in _counted(entry, key)]
        if rows:
            parts += [element("h3", title), table(("stage", "", "number"), rows)]
    return join(parts)


def _reasons(entry: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    """Yield a row for each reason; the stage is named in the first."""
    name, taken = str(entry.get("stage", "?")), as_number(entry.get("rows_in"))
    found = {reason: n for reason, n in as_counts(entry.get("drops")).items() if n}
    largest = max(found.values(), default=0)
    for i, (reason, n) in enumerate(found.items()):
        share = Number(n / taken if taken else None, ".3%")
        shown = reason.replace("_", " ")
        yield name if i == 0 else "", shown, Number(n), share, small_bar(n / largest, "b")


def _counted(entry: Mapping[str, Any], key: str) -> Iterator[tuple[object, ...]]:
    found = [(what, n) for what, n in as_counts(entry.get(key)).items() if n]
    for i, (what, n) in enumerate(found):
        yield str(entry.get("stage", "?")) if i == 0 else "", what.replace("_", " "), Number(n)


def duplicates(manifest: Manifest) -> Html:
    """Return how many copies were dropped, and the settings that found them."""
    found = at(manifest, "duplicates")
    if not isinstance(found, Mapping):
        return element("p", missing("duplicates"))
    taken = as_number(at(stage_named(manifest, "dedup"), "rows_in"))
    cards: list[tuple[str, object]] = []
    for kind in ("exact_duplicate", "near_duplicate"):
        # a kind that was not met may be left out
        n = as_number(found.get(kind)) or 0
        share = f", {n / taken:.2%} of {taken:,.0f}" if taken else ""
        cards.append((f"{kind.replace('_', ' ')}s{share}", Number(n)))
    config = at(manifest, "config", "near_dedup")
    return join((tiles(cards), pairs(config) if isinstance(config, Mapping) else ""))


def decontamination(manifest: Manifest) -> Html:
    """Return the benchmarks that were looked for, and the documents that repeat them."""
    entry = stage_named(manifest, "decontaminate")
    if entry is None:
        return element("p", missing("decontamination"))
    names = at(manifest, "config", "decontaminate", "benchmarks")
    hits = {
        reason.removeprefix(_CONTAMINATED): n
        for reason, n in as_counts(entry.get("drops")).items()
        if reason.startswith(_CONTAMINATED)
    }
    asked = [str(name) for name in names] if isinstance(names, list) else []
    rows = [(name, Number(hits.get(name, 0))) for name in dict.fromkeys((*asked, *sorted(hits)))]
    problems = [
        (note.removeprefix(_HIT), Number(n)) for note, n in as_counts(entry.get("notes")).items()
    ]
    if not rows:
        return element("p", "No benchmark was looked for.")
    return join(
        (
            table(("benchmark", "documents dropped"), rows),
            table(("problem found", "documents"), problems) if problems else "",
            element(
                "p",
                "Found are documents that repeat a part of a problem, whatever their layout and "
                "case. Renamed variables and paraphrases are not found.",
                class_="soft",
            ),
        )
    )


def costs(manifest: Manifest) -> Html:
    """Return the cost of every stage, of the parts of reading, and of all."""
    entries = as_list(at(manifest, "costs"))
    if not entries:
        return element("p", missing("cost of the stages"))
    seconds = [as_number(entry.get("cpu_s")) for entry in entries]
    whole = sum(used or 0 for used in seconds)
    rows: list[tuple[object, ...]] = []
    for entry in entries:
        rows.append(_cost(str(entry.get("stage", "?")), entry, whole))
        for part, used in as_counts(entry.get("parts")).items():
            name = f"of this, {part}"
            bar = small_bar(used / whole if whole else 0, "ghost")
            rows.append((name, "", "", Number(used, ",.1f"), "", "", "", bar))
    read = as_number(entries[0].get("bytes_in"))
    peaks = [as_number(entry.get("peak_rss_bytes")) for entry in entries]
    everything = {
        "tasks": sum_of([as_number(entry.get("tasks")) for entry in entries]),
        "seconds": sum_of([as_number(entry.get("seconds")) for entry in entries]),
        "cpu_s": sum_of(seconds),
        "bytes_in": read,
        "peak_rss_bytes": max((peak for peak in peaks if peak is not None), default=None),
    }
    *numbers, _ = _cost("all, relative to the input", everything, whole)
    rows.append((*numbers, ""))
    per = ("MB per CPU-s", "peak MB per task")
    head = ("stage", "tasks", "task-seconds", "CPU-s", "MB in", *per, "")
    parts = [table(head, rows, sums=True)]
    if read and whole:
        hours = whole / 3600 / (read / 1e12)
        rate = f"At this rate {hours:,.0f} core-hours per terabyte of input."
        parts.append(element("p", rate, class_="soft"))
    on_disk = as_number(entries[0].get("bytes_on_disk"))
    if read and on_disk:
        told = "{:,.1f} MB were read, as they are unpacked; on disk they are {:,.1f} MB."
        parts.append(element("p", told.format(read / 1e6, on_disk / 1e6), class_="soft"))
    return join(parts)


def _cost(name: str, entry: Mapping[str, Any], whole: float) -> tuple[object, ...]:
    seconds, size = as_number(entry.get("cpu_s")), as_number(entry.get("bytes_in"))
    peak = as_number(entry.get("peak_rss_bytes"))
    return (
        name,
        Number(as_number(entry.get("tasks"))),
        Number(as_number(entry.get("seconds")), ",.1f"),
        Number(seconds, ",.1f"),
        Number(size / 1e6, ",.1f") if size else "",
        Number(size / 1e6 / seconds, ",.1f") if size and seconds else "",
        Number(peak / 1e6 if peak is not None else None),
        small_bar((seconds or 0) / whole if whole else 0),
    )
