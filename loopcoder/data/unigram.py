"""The unigram entropy: what a model reaches that knows how frequent each token is, and no context.

It is the cross-entropy of a domain's held-out tokens under the frequencies of its training tokens,
where it has a mask of those that are trained, so it is a constant of the corpus: its manifest has
it, and older corpora are counted once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopcoder.data.corpus import UNIGRAM_ENTROPY, Corpus
from loopcoder.data.indexed import chunks_of, token_dtype
from loopcoder.data.mask import MASK
from loopcoder.storage.files import write_json

SAMPLE_TOKENS = 1_000_000_000
"""Tokens of a domain's split that are counted of a corpus whose manifest has no unigram entropy."""


def unigram_entropy(train: NDArray[np.int64], val: NDArray[np.int64]) -> float:
    """Return the cross-entropy of held-out tokens under training frequencies, in nats per token.

    The frequencies are add-one over the vocabulary, so that no token is impossible (Laplace's rule
    of succession).

    Args:
        train: How often each id is in the training tokens. [vocab_size]
        val: How often it is in the held-out tokens, one of them at least. [vocab_size]
    """
    log_shares = np.log(train + 1.0) - np.log(float(train.sum()) + len(train))
    return float(-(val * log_shares).sum() / val.sum())


def count_tokens(
    bin_path: Path, vocab_size: int, limit: int | None = None, *, mask: Path | None = None
) -> NDArray[np.int64]:
    """Return how often each id is in a `.bin`, or in its first `limit` tokens. [vocab_size]

    Args:
        mask: Of its tokens; those that are trained are counted. None: all are.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    read = 0
    for ids in chunks_of(bin_path, token_dtype(vocab_size), limit):
        counted: NDArray[Any] = ids
        if mask is not None:
            counted = ids[np.fromfile(mask, dtype=np.bool_, count=len(ids), offset=read)]
        counts += np.bincount(counted, minlength=vocab_size)
        read += len(ids)
    return counts


def entropies_of(corpus: Corpus, cache: Path, report: Callable[[str], None]) -> dict[str, float]:
    """Return the unigram entropy of every domain of a corpus, in nats per token.

    Where the manifest has none, the tokens are counted, and what comes out is kept beside them, or
    in the cache where that folder is read-only. Of more than SAMPLE_TOKENS tokens a sample of so
    many is counted: every shard gives its first ones, since its documents are shuffled.

    Args:
        corpus: The corpus.
        cache: Folder for what cannot be kept in that of the corpus.
        report: Receives a line when tokens are counted.
    """
    if UNIGRAM_ENTROPY in corpus.manifest:
        return dict(corpus.manifest[UNIGRAM_ENTROPY])
    if corpus.members[0] is not corpus:
        by_member = {id(m): entropies_of(m, cache, report) for m in corpus.members}
        parts = {domain: corpus.part(domain) for domain in corpus.domains}
        return {domain: by_member[id(member)][own] for domain, (member, own) in parts.items()}
    places = (
        corpus.dir / f"{UNIGRAM_ENTROPY}.json",
        cache / f"{UNIGRAM_ENTROPY}-{corpus.fingerprint}.json",
    )
    for path in places:
        if (known := _read(path, corpus)) is not None:
            return known
    report(f"counting the tokens of {corpus.dir} once for their unigram entropy{_sample(corpus)}")
    found = {
        domain: unigram_entropy(_counts(corpus, domain, "train"), _counts(corpus, domain, "val"))
        for domain in corpus.domains
    }
    content = {"fingerprint": corpus.fingerprint, UNIGRAM_ENTROPY: found}
    if not _write(places, content):
        report(f"it is counted anew each time: {corpus.dir} and {cache} cannot be written to")
    return found


def _counts(corpus: Corpus, domain: str, split: str) -> NDArray[np.int64]:
    """Count a split, or as many tokens of every shard as its part of SAMPLE_TOKENS."""
    total = corpus.tokens(domain, split)
    counts = np.zeros(corpus.vocab_size, dtype=np.int64)
    shards = zip(corpus.prefixes(domain, split), corpus.shard_tokens(domain, split), strict=True)
    masked = corpus.packed_for(domain) is not None
    for prefix, tokens in shards:
        limit = tokens if total <= SAMPLE_TOKENS else -(-SAMPLE_TOKENS * tokens // total)
        mask = Path(prefix + MASK) if masked else None
        counts += count_tokens(Path(f"{prefix}.bin"), corpus.vocab_size, limit, mask=mask)
    return counts


def _sample(corpus: Corpus) -> str:
    """Say which domains are counted in part."""
    totals = {d: corpus.tokens(d, "train") for d in corpus.domains}
    parts = [
        f"{SAMPLE_TOKENS:,} of the {total:,} training tokens of {domain}"
        for domain, total in totals.items()
        if total > SAMPLE_TOKENS
    ]
    return f", on a sample: {', '.join(parts)}" if parts else ""


def _read(path: Path, corpus: Corpus) -> dict[str, float] | None:
    """Return what was counted before of this corpus; None where there is nothing to be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["fingerprint"] == corpus.fingerprint:
            return {domain: float(content[UNIGRAM_ENTROPY][domain]) for domain in corpus.domains}
    return None


def _write(places: Iterable[Path], content: dict[str, Any]) -> bool:
    """Write to the first place that takes it; return whether one did."""
    for path in places:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, content)
            return True
    return False
