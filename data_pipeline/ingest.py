"""The first stage: read every source, drop copies and what exceeds a limit, and spool the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from data_pipeline.dedup import ExactDedup, normalise
from data_pipeline.readers.base import Source
from data_pipeline.readers.sample import DEFAULT_SIDE_BYTES, MIN_SIDE_BYTES
from data_pipeline.schema import Document, Tally
from data_pipeline.spool import Spool
from loopcoder.errors import InputError, Problem

Report = Callable[[str], None]


def select(sources: Sequence[Source], spools: dict[str, Spool], report: Report) -> list[Tally]:
    """Fill the spool of every domain; return the tallies of reading and selecting.

    Raises:
        InputError: a side ends up too small to train on, or a source is unusable.
    """
    dedup = ExactDedup()
    tallies = []
    for source in sources:
        start = time.monotonic()
        before = {domain: spool.num_bytes for domain, spool in spools.items()}
        read = Tally(f"read {source.name}")
        kept = Tally(f"select {source.name}")
        _select_from(source, spools, dedup, read, kept)
        for tally in (read, kept):
            tally.check()
        if read.rows_out != kept.rows_in:
            raise RuntimeError(f"{source.name}: {read.rows_out} read, {kept.rows_in} selected from")
        tallies += [read, kept]
        sides = ", ".join(f"{d} {megabytes(s.num_bytes - before[d])}" for d, s in spools.items())
        report(
            f"data: read {source.name}: {read.rows_in:,} rows, kept {kept.rows_out:,} ({sides}) "
            f"in {time.monotonic() - start:.1f} s{_reasons(read, kept)}"
        )
    _check_sides(sources, spools, tallies)
    return tallies


def _select_from(
    source: Source, spools: dict[str, Spool], dedup: ExactDedup, read: Tally, kept: Tally
) -> None:
    """Read one source until it ends or its limits are reached."""
    limit = source.config.max_bytes
    if limit is None and source.config.kind == "sample":
        limit = DEFAULT_SIDE_BYTES
    room = dict.fromkeys(spools, limit)
    full: set[str] = set()

    def reason_against(document: Document) -> str | None:
        if document.domain not in spools:
            return "domain_not_in_mixture"
        if document.domain in full:
            return "side_full"
        data = document.text.encode()
        left = room[document.domain]
        if left is not None and len(data) > left:
            full.add(document.domain)
            return "side_full"
        normalised = normalise(data)
        if not dedup.is_new(normalised):
            return "duplicate"
        if left is not None:
            room[document.domain] = left - len(data)
        spools[document.domain].add(document, data, normalised)
        return None

    for document in source.documents(read):
        kept.rows_in += 1
        reason = reason_against(document)
        if reason:
            kept.drop(reason)
        else:
            kept.rows_out += 1
        if full >= source.domains & spools.keys():
            break
        if source.config.max_documents and read.rows_out >= source.config.max_documents:
            break


def _reasons(*tallies: Tally) -> str:
    counts = [
        f"{n:,} {reason}"
        for tally in tallies
        for reason, n in (*tally.drops.most_common(), *tally.file_drops.most_common())
    ]
    return f"; left out: {', '.join(counts)}" if counts else ""


def megabytes(num_bytes: int) -> str:
    """Return a size for people."""
    return f"{num_bytes / 1e6:.1f} MB"


def _check_sides(
    sources: Sequence[Source], spools: dict[str, Spool], tallies: Sequence[Tally]
) -> None:
    """Raise InputError for every side that is too small to train on."""
    reasons = _reasons(*tallies).removeprefix("; ") or "nothing was read"
    problems = []
    for domain, spool in spools.items():
        if len(spool) < 2:
            problems.append(
                Problem(
                    f"side {domain!r} of the corpus has {len(spool)} documents ({reasons})",
                    "it needs one to train on and one to hold out",
                    f"add a source with {domain}, or '~data.mixture.{domain}'",
                )
            )
        elif all(source.config.kind == "sample" for source in sources):
            limits = [s.config.max_bytes // 2 for s in sources if s.config.max_bytes]
            wanted = min([MIN_SIDE_BYTES, *limits])
            if spool.num_bytes < wanted:
                problems.append(
                    Problem(
                        f"data=sample found only {spool.num_bytes:,} bytes of {domain} here",
                        f"less than {wanted:,} bytes are too few to learn from",
                        "data=files data.path=FOLDER with your own documents",
                    )
                )
    if problems:
        raise InputError(problems)
