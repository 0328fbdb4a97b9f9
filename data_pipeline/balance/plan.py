"""From the counts of all chunks to what is taken of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.balance.filling import plan
from data_pipeline.balance.quotas import ChunkQuota, Plan, Supply
from data_pipeline.balance.selection import select
from data_pipeline.balance.shares import SHARES
from data_pipeline.repositories.chunks import num_chunks
from data_pipeline.repositories.stages import is_on
from data_pipeline.tasks.work import Output, Result, Work, read_sealed, write_sealed
from data_pipeline.tokenizer.count import Counts
from loopcoder.config.data import DataConfig
from loopcoder.config.mixture import without
from loopcoder.errors import InputError, counted

_HISTOGRAM_BINS = 24
"""Powers of two of a document's tokens."""
_CANDIDATES = 1000
"""Repositories that are looked at for the one to hold out."""
_MOST_HELD_OUT = 4
"""Times val_fraction that repositories below the threshold may be of the code's tokens."""


@dataclass(frozen=True)
class Planned(Result):
    """The plan but for what is taken of each chunk, which `quotas_of` returns."""

    stage: ClassVar[str] = "plan"
    smallest: dict[str, int | None]
    """By domain, the content hash of the one document (or repository) to hold out in place of what
    val_fraction holds out, which is nothing or, of repositories, too much; else None."""
    tokens: int
    """Of all domains, copies included."""
    documents: int
    """About as many, copies included."""
    held_out_tokens: int
    held_out_documents: int
    worker_bytes: int
    """Memory that the buckets are cut for; a build may be continued with another."""
    largest_tokens: int
    """Largest total that the supplies could give."""
    languages: list[dict[str, Any]]
    """What the manifest says of each language."""
    lengths: dict[str, list[int]]
    """By domain, how many documents have up to 2, 4, 8, ... tokens."""


def make_plan(work: Work, _: int) -> Output:
    """Write the quotas of every chunk.

    Raises:
        InputError: a domain has nothing to train on, or the target cannot be met.
    """
    smallest = _smallest(work)
    supply: list[Supply] = []
    held: dict[str, Counter[str]] = {domain: Counter() for domain in work.domains}
    lengths = {domain: np.zeros(_HISTOGRAM_BINS, dtype=np.int64) for domain in work.domains}
    utf8: dict[str, Counter[str]] = {domain: Counter() for domain in work.domains}
    for chunk in range(num_chunks(work)):
        counts = Counts.of(work, chunk)
        entries = counts.entries
        out = counts.held_out(work.data.build.val_fraction, smallest)
        for number, (domain, language) in enumerate(counts.kinds):
            mine = entries["kind"] == number
            tokens = entries["length"][mine & ~out].astype(np.int64)
            lengths[domain] += _histogram(entries["length"][mine & ~out])
            utf8[domain][language] += int(entries["bytes"][mine].sum())
            held[domain]["documents"] += int((mine & out & (entries["piece"] == 0)).sum())
            held[domain]["tokens"] += int(entries["length"][mine & out].sum())
            if len(tokens):
                supply.append(
                    Supply(_name(chunk), domain, language, len(tokens), int(tokens.sum()))
                )
    for domain in work.domains:
        mine = [s for s in supply if s.domain == domain]
        _check_split(work.data, domain, mine, held[domain]["documents"])
    planned = _planned(work, supply, work.data.build.target_tokens)
    _write(work, planned)
    mean = sum(s.tokens for s in supply) / sum(s.documents for s in supply)
    result = Planned(
        smallest=smallest,
        tokens=planned.tokens,
        documents=int(planned.tokens / mean) + 1,
        held_out_tokens=sum(counter["tokens"] for counter in held.values()),
        held_out_documents=sum(counter["documents"] for counter in held.values()),
        worker_bytes=work.data.build.worker_bytes,
        largest_tokens=planned.largest_tokens,
        languages=[
            row | {"supply_bytes": utf8[row["domain"]][row["language"]]} for row in planned.rows()
        ],
        lengths={domain: counts.tolist() for domain, counts in lengths.items()},
    )
    return Output(result)


def quotas_of(work: Work, chunk: int) -> Plan:
    """Return what is taken of a chunk.

    Raises:
        InputError: it was changed after it was planned.
    """
    return Plan.from_json(read_sealed(_quotas_path(work, chunk), work.folder).decode())


def target_for(work: Work, needed: Mapping[str, int], least: int) -> int | None:
    """Return a target with which the documents that are taken have the tokens that are needed.

    They are taken whole, so that of a small target a domain may get far less than its share, or
    nothing. It is the first of `least`, twice, four times ... that gives enough; None: none does.

    Args:
        work: The plan is made.
        needed: Tokens by domain.
        least: Smallest target that is tried.
    """
    largest = work.result(Planned).largest_tokens
    target = min(least, largest)
    while not _gives(work, target, needed):
        if target == largest:
            return None
        target = min(2 * target, largest)
    return target


def _gives(work: Work, target: int, needed: Mapping[str, int]) -> bool:
    """Tell whether each domain gets the tokens that are needed of a target."""
    planned = _planned(work, [s for n in range(num_chunks(work)) for s in _supply(work, n)], target)
    missing = Counter(needed)
    for chunk in range(num_chunks(work)):
        mine = dict(_trained(work, chunk))
        for quota in (quota for quota in planned.chunks if quota.chunk == _name(chunk)):
            lengths = mine[quota.domain, quota.language]
            missing[quota.domain] -= int((select(lengths, quota) * lengths).sum())
        if max(missing.values()) <= 0:
            return True
    return False


def _trained(work: Work, chunk: int) -> Iterator[tuple[tuple[str, str], NDArray[np.int64]]]:
    """Yield each domain and language of a chunk with the tokens of what is not held out."""
    counts = Counts.of(work, chunk)
    out = counts.held_out(work.data.build.val_fraction, work.result(Planned).smallest)
    for number, kind in enumerate(counts.kinds):
        mine = (counts.entries["kind"] == number) & ~out
        yield kind, counts.entries["length"][mine].astype(np.int64)


def _supply(work: Work, chunk: int) -> list[Supply]:
    return [
        Supply(_name(chunk), domain, language, len(tokens), int(tokens.sum()))
        for (domain, language), tokens in _trained(work, chunk)
        if len(tokens)
    ]


def _planned(work: Work, supply: list[Supply], target: int | None) -> Plan:
    return plan(
        supply,
        shares=_shares(work),
        target_tokens=target,
        max_epochs=work.data.build.epochs,
        mixture=work.weights,
    )


def _smallest(work: Work) -> dict[str, int | None]:
    """Return the hash of what to hold out of each domain, see `Planned`."""
    lowest: dict[str, int] = {}
    for chunk in range(num_chunks(work)):
        counts = Counts.of(work, chunk)
        for domain in {domain for domain, _ in counts.kinds}:
            smallest = int(counts.entries["content"][counts.of_domain(domain)].min())
            lowest[domain] = min(smallest, lowest.get(domain, smallest))
    threshold = int(work.data.build.val_fraction * 2**64)
    found: dict[str, int | None] = dict.fromkeys(work.domains)
    for domain, smallest in lowest.items():
        if is_on(work) and domain == "code":
            found[domain] = _one_repository(work, domain, threshold)
        elif smallest >= threshold:
            found[domain] = smallest
    return found


def _one_repository(work: Work, domain: str, threshold: int) -> int | None:
    """Return the hash of the one repository to hold out, if those below the threshold are none or
    far too much, as they may be where repositories are few; None: they are what is wanted.

    It is, of the smallest hashes, the one whose documents come nearest to val_fraction.
    """
    candidates = np.zeros(0, dtype=np.uint64)
    total = below = 0
    for mine in _entries(work, domain):
        candidates = np.unique(np.concatenate([candidates, mine["content"]]))[:_CANDIDATES]
        tokens = mine["length"].astype(np.int64)
        total += int(tokens.sum())
        below += int(tokens[mine["content"] < np.uint64(min(threshold, 2**64 - 1))].sum())
    wanted = work.data.build.val_fraction * total
    if 0 < below <= _MOST_HELD_OUT * wanted:
        return None
    sizes = np.zeros(len(candidates), dtype=np.int64)
    for mine in _entries(work, domain):
        place = np.minimum(np.searchsorted(candidates, mine["content"]), len(candidates) - 1)
        is_one = candidates[place] == mine["content"]
        np.add.at(sizes, place[is_one], mine["length"][is_one])
    return int(candidates[np.argmin(np.abs(sizes - wanted))])


def _entries(work: Work, domain: str) -> Iterator[NDArray[np.void]]:
    """Yield the entries of a domain, chunk by chunk."""
    for chunk in range(num_chunks(work)):
        counts = Counts.of(work, chunk)
        yield counts.entries[counts.of_domain(domain)]


def _histogram(lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return how many documents have up to 2, 4, 8, ... tokens."""
    powers = np.ceil(np.log2(np.maximum(lengths, 2))).astype(np.int64) - 1
    return np.bincount(np.minimum(powers, _HISTOGRAM_BINS - 1), minlength=_HISTOGRAM_BINS)


def _check_split(data: DataConfig, domain: str, supply: list[Supply], held: int) -> None:
    left = sum(s.documents for s in supply)
    if left and held:
        return
    fix = f"a source with more {domain}"
    if held > 1:
        fix = f"data.build.val_fraction={min(0.02, data.build.val_fraction / 2):g}, or {fix}"
    if data.build.repository.enabled and domain == "code":
        fix = "a source with more repositories, or data.build.repository.enabled=false"
    if rest := without(data.mixture, domain):
        fix += f", or {rest}"
    found = counted(left + held, "document")
    are_out = f"{held} {'is' if held == 1 else 'are'} held out"
    raise InputError.of(
        f"domain {domain!r} of the corpus has {found}, of which {are_out}",
        "it needs one to train on and one to hold out",
        fix,
    )


def _shares(work: Work) -> dict[str, Any]:
    shares = work.data.build.shares
    if shares == "published":
        return dict(SHARES)
    return {} if shares == "supply" else {"code": shares}


def _write(work: Work, planned: Plan) -> None:
    """Write the quotas of every chunk by themselves: a task needs no others."""
    by_chunk: dict[str, list[ChunkQuota]] = {_name(n): [] for n in range(num_chunks(work))}
    for quota in planned.chunks:
        by_chunk[quota.chunk].append(quota)
    _quotas_path(work, 0).parent.mkdir(parents=True, exist_ok=True)
    for chunk in range(num_chunks(work)):
        mine = tuple(by_chunk[_name(chunk)])
        part = Plan(planned.weights, (), mine, planned.largest_tokens)
        write_sealed(_quotas_path(work, chunk), part.to_json().encode())


def _name(chunk: int) -> str:
    return f"{chunk:05d}"


def _quotas_path(work: Work, chunk: int) -> Path:
    return work.folder / "plan" / _name(chunk)
