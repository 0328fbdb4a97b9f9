"""`loopcoder data show CORPUS --dropped`: what was left out of a corpus, and why."""

from __future__ import annotations

import difflib
import random
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from loopcoder.data.places import rebuild
from loopcoder.errors import InputError

_MOST = 5_000_000
"""Entries of a list that are looked through for examples."""


def print_dropped(
    folder: Path, manifest: Mapping[str, Any], reason: str, number: int, seed: int
) -> None:
    """Print how much was left out by reason, and examples.

    Args:
        folder: Of the corpus.
        manifest: Of the corpus; an older one has counts, but neither examples nor a list.
        reason: The one to show; "" for all.
        number: Examples to print.
        seed: Of their draw from the list.

    Raises:
        InputError: nothing was left out for this reason, or the list cannot be read.
    """
    from data_pipeline.report.dropped import describe
    from loopcoder.page import printable

    rows = [row for row in _counts(manifest) if reason in ("", row[2])]
    if reason and not rows:
        names = sorted({row[2] for row in _counts(manifest)})
        near = difflib.get_close_matches(reason, names, n=1)
        raise InputError.of(
            f"--dropped {reason}",
            f"nothing was left out for it; the reasons are {', '.join(names) or 'none'}",
            f"--dropped {near[0]}" if near else "--dropped, which counts all",
        )
    for stage, unit, name, count in rows:
        print(f"{count:>12,}  {name}  ({stage}, {unit}s)")
    found = _drawn(folder, manifest, reason, number, seed)
    if found:
        print(f"\n{len(found)} of them:")
    for entry in found:
        print(f"  {entry.get('reason')}: {printable(describe(entry))}")
    if not (manifest.get("dropped") or {}).get("listed"):
        print(
            "\nThis corpus has no complete list: it was built by an older version, or with "
            "data.build.list_drops=false"
        )


def _counts(manifest: Mapping[str, Any]) -> list[tuple[str, str, str, int]]:
    """Return (stage, unit, reason, number), the most frequent first."""
    rows = [
        (str(stage["stage"]), unit, str(reason), int(count))
        for stage in manifest["stages"]
        for unit, key in (("document", "drops"), ("file", "file_drops"))
        for reason, count in stage.get(key, {}).items()
        if count
    ]
    return sorted(rows, key=lambda row: (-row[3], row))


def _drawn(
    folder: Path, manifest: Mapping[str, Any], reason: str, number: int, seed: int
) -> list[dict[str, Any]]:
    """Draw entries of the list, each as likely as any other; without a list, those that the
    manifest has."""
    from data_pipeline.tasks.dropped import lists_of

    if not lists_of(folder):
        rows = (manifest.get("dropped") or {}).get("reasons", [])
        kept = [e for row in rows if reason in ("", row["reason"]) for e in row["examples"]]
        return kept[:number]
    draw = random.Random(seed)
    found: list[dict[str, Any]] = []
    try:
        for i, entry in enumerate(islice(_entries(folder, reason), _MOST)):
            if i < number:
                found.append(entry)
            elif (place := draw.randrange(i + 1)) < number:
                found[place] = entry
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError.of(
            f"the list of what was left out of {folder} cannot be read: {error}",
            "a file of the corpus was changed after it was built",
            rebuild(folder),
        ) from error
    return found


def _entries(folder: Path, reason: str) -> Iterator[dict[str, Any]]:
    from data_pipeline.tasks.dropped import lists_of, read_list

    for path in lists_of(folder):
        for entry in read_list(path):
            if reason in ("", entry["reason"]):
                yield entry
