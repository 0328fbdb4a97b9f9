"""What a corpus has of each source and package."""

from __future__ import annotations

from collections import Counter
from typing import Any

from data_pipeline.readers.ingest import Listed, Read
from data_pipeline.tasks.origins import Origins
from data_pipeline.tasks.work import Work

_NAMED = 3
"""Reasons that are told."""


def origins_of(work: Work, kept: Origins, taken: Origins) -> list[dict[str, Any]]:
    """Return an entry of the manifest for each source, and for each of its packages.

    Args:
        kept: What is left after deduplication.
        taken: What the quotas take of it, copies included.
    """
    of_source, of_package = _reasons(work)
    rows = []
    for source in work.result(Listed).sources:
        name = str(source["name"])
        packages = [str(p["folder"]) for p in source.get("packages", [])]
        for package in (None, *packages):
            documents, num_bytes, tokens = kept.of(name, package)
            drops = of_source[name] if package is None else of_package[package]
            rows.append(
                {
                    "source": name,
                    "package": package,
                    "documents": documents,
                    "bytes": num_bytes,
                    "tokens": tokens,
                    "taken_tokens": taken.of(name, package)[2],
                    "left_out": dict(drops.most_common(_NAMED)),
                }
            )
    return rows


def _reasons(work: Work) -> tuple[dict[str, Counter[str]], dict[str, Counter[str]]]:
    """Return what reading left out by reason, of each source and of each package."""
    listed = work.result(Listed)
    of_source: dict[str, Counter[str]] = {str(s["name"]): Counter() for s in listed.sources}
    packages = [package for source in listed.sources for package in source.get("packages", [])]
    of_package: dict[str, Counter[str]] = {str(p["folder"]): Counter() for p in packages}
    for done in work.all_done(Read):
        for tally in done.result.tallies:
            of_source[done.result.source].update(tally.drops + tally.file_drops)
        for package, drops in done.result.packages.items():
            of_package[package].update(drops)
    return of_source, of_package
