"""From the counts of all chunks to what is taken of each, and how many buckets that needs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.balance.filling import plan
from data_pipeline.balance.quotas import FileQuota, Plan, Supply
from data_pipeline.balance.shares import SHARES
from data_pipeline.shuffle.buckets import num_buckets
from data_pipeline.tasks.work import Work
from data_pipeline.tokenizer.count import is_held_out, read_counts
from loopcoder.errors import InputError
from loopcoder.storage.files import write_bytes

_HISTOGRAM_BINS = 24
"""Powers of two of a document's tokens."""


def make_plan(work: Work, _: int) -> dict[str, Any]:
    """Write the plan of every chunk; return it by language, and what is held out.

    Raises:
        InputError: a domain has nothing to train on, or the target cannot be met.
    """
    chunks = range(len(work.chunks))
    kinds = [facts["kinds"] for facts in work.facts("count", len(work.chunks))]
    smallest = _smallest(work, kinds)
    supply: list[Supply] = []
    held: dict[str, Counter[str]] = {domain: Counter() for domain in work.domains}
    lengths = {domain: np.zeros(_HISTOGRAM_BINS, dtype=np.int64) for domain in work.domains}
    utf8: dict[str, Counter[str]] = {domain: Counter() for domain in work.domains}
    for chunk in chunks:
        entries = read_counts(work, chunk)
        out = is_held_out(work, entries, kinds[chunk], smallest)
        for number, (domain, language) in enumerate(kinds[chunk]):
            mine = entries["kind"] == number
            tokens = entries["length"][mine & ~out].astype(np.int64)
            lengths[domain] += _histogram(entries["length"][mine & ~out])
            utf8[domain][language] += int(entries["bytes"][mine].sum())
            held[domain]["documents"] += int((mine & out & (entries["piece"] == 0)).sum())
            held[domain]["tokens"] += int(entries["length"][mine & out].sum())
            if len(tokens):
                supply.append(
                    Supply(f"{chunk:05d}", domain, language, len(tokens), int(tokens.sum()))
                )
    for domain in work.domains:
        _check_split(domain, [s for s in supply if s.domain == domain], held[domain])
    planned = plan(
        supply,
        shares=_shares(work),
        target_tokens=work.data.build.target_tokens,
        max_epochs=work.data.build.epochs,
        mixture=work.weights,
    )
    _write(work, planned)
    mean = sum(s.tokens for s in supply) / sum(s.documents for s in supply)
    vocab_size = work.facts_of("tokenizer", 0)["vocab_size"]
    memory = work.data.build.worker_bytes
    buckets = num_buckets(planned.tokens, int(planned.tokens / mean) + 1, vocab_size, memory)
    held_tokens = sum(counter["tokens"] for counter in held.values())
    held_documents = sum(counter["documents"] for counter in held.values())
    return {
        "held_out": smallest,
        "num_buckets": work.data.build.shards or buckets,
        "num_held_out_buckets": num_buckets(held_tokens, held_documents, vocab_size, memory),
        "weights": work.weights,
        "tokens": planned.tokens,
        "largest_tokens": planned.largest_tokens,
        "languages": [
            row | {"supply_bytes": utf8[row["domain"]][row["language"]]} for row in planned.rows()
        ],
        "shares": planned.shares(),
        "lengths": {domain: counts.tolist() for domain, counts in lengths.items()},
    }


def _smallest(work: Work, kinds: list[list[list[str]]]) -> dict[str, int | None]:
    """Return by domain the content hash of the one document to hold out where val_fraction
    holds out none, else None."""
    found: dict[str, int | None] = {}
    for domain in work.domains:
        lowest: int | None = None
        for chunk, names in enumerate(kinds):
            mine = [number for number, kind in enumerate(names) if kind[0] == domain]
            entries = read_counts(work, chunk)
            content = entries["content"][np.isin(entries["kind"], mine)]
            if len(content):
                smallest = int(content.min())
                lowest = smallest if lowest is None else min(lowest, smallest)
        is_held = lowest is not None and lowest < int(work.data.build.val_fraction * 2**64)
        found[domain] = None if is_held else lowest
    return found


def _histogram(lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return how many documents have up to 2, 4, 8, ... tokens."""
    powers = np.ceil(np.log2(np.maximum(lengths, 2))).astype(np.int64) - 1
    return np.bincount(np.minimum(powers, _HISTOGRAM_BINS - 1), minlength=_HISTOGRAM_BINS)


def _check_split(domain: str, supply: list[Supply], held: Counter[str]) -> None:
    documents = sum(s.documents for s in supply)
    if not documents or not held["documents"]:
        raise InputError.of(
            f"domain {domain!r} of the corpus has {documents + held['documents']} documents, "
            f"of which {held['documents']} are held out",
            "it needs one to train on and one to hold out",
            f"data.build.val_fraction=0.02, a source with more {domain}, or "
            f"'~data.mixture.{domain}'",
        )


def _shares(work: Work) -> dict[str, Any]:
    shares = work.data.build.shares
    if shares == "published":
        return dict(SHARES)
    return {} if shares == "supply" else {"code": shares}


def _write(work: Work, planned: Plan) -> None:
    """Write the quotas of every chunk by themselves: a task needs no others."""
    folder = work.folder / "plan"
    folder.mkdir(parents=True, exist_ok=True)
    by_file: dict[str, list[FileQuota]] = {f"{chunk:05d}": [] for chunk in range(len(work.chunks))}
    for quota in planned.files:
        by_file[quota.file].append(quota)
    for name, quotas in by_file.items():
        part = Plan(planned.weights, (), tuple(quotas), planned.largest_tokens)
        write_bytes(folder / f"{name}.json", part.to_json().encode())
