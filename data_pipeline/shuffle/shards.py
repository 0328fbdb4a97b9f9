"""The other half of the global shuffle: from buckets of documents to the shards of training.

    OUT/text-00003.bin .idx     one shard, of bucket 3; code-00003 has as many sequences
    OUT/text-00003.labels       what its documents are; a document that is cut keeps its label

The cut. All shards have the same size: with T_s tokens of domain s, B buckets, sequences of L
tokens and the mixture a_s in lowest terms, u = min_s floor((T_s // B - 1) / (L a_s)), and a shard
of domain s has u a_s sequences: exactly u a_s L + 1 tokens (the last label included). A shard
takes its own bucket in hash order. What a bucket has too much goes to those that have too little,
in the order of their numbers; what then remains is dropped and counted. A document that lies across
the end of a shard or of a bucket's part is cut there, its last token within becoming an EOD, so
that every entry of an index still ends in one EOD.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.schema import Tally
from data_pipeline.shuffle.bucket_index import Indexed
from data_pipeline.shuffle.bucket_reader import Bucket, Losses
from data_pipeline.shuffle.buckets import ShuffleConfig
from loopcoder.config.check_build import least_tokens
from loopcoder.data.indexed import BLOCKS, IndexedWriter
from loopcoder.data.labels import LABELS, Label, LabelWriter
from loopcoder.errors import InputError

_Block = tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]
"""Ids of some documents, the length and the kind of each."""


@dataclass(frozen=True)
class Written:
    """One `.bin/.idx`."""

    prefix: str
    """Name without suffix."""
    documents: int
    tokens: int
    overwritten_tokens: int
    """Last tokens of cut documents that became an EOD."""
    languages: dict[str, dict[str, int]]
    """Documents and tokens of each."""
    labels: dict[int, tuple[int, int]]
    """Documents and tokens of each that it has, by number."""

    @classmethod
    def total(cls, parts: Iterable[Written]) -> Written:
        """Return what several come to, without a name; languages with most tokens come first."""
        total: Counter[str] = Counter()
        languages: dict[str, Counter[str]] = {}
        labels: dict[int, tuple[int, int]] = {}
        for part in parts:
            total.update(
                documents=part.documents,
                tokens=part.tokens,
                overwritten_tokens=part.overwritten_tokens,
            )
            for language, numbers in part.languages.items():
                languages.setdefault(language, Counter()).update(numbers)
            for number, (documents, tokens) in part.labels.items():
                before = labels.get(number, (0, 0))
                labels[number] = before[0] + documents, before[1] + tokens
        by_tokens = sorted(languages.items(), key=lambda item: (-item[1]["tokens"], item[0]))
        return cls(
            prefix="",
            documents=total["documents"],
            tokens=total["tokens"],
            overwritten_tokens=total["overwritten_tokens"],
            languages={language: dict(numbers) for language, numbers in by_tokens},
            labels=labels,
        )


@dataclass(frozen=True)
class Shard:
    """A shard, and what its bucket lost."""

    written: Written
    sequences: int
    losses: Losses


class Piece(NamedTuple):
    """Tokens [start, stop) of one domain of a bucket in hash order."""

    bucket: int
    start: int
    stop: int


def cut(
    tokens: Mapping[str, Sequence[int]], seq_length: int, weights: Mapping[str, int]
) -> dict[str, list[list[Piece]]]:
    """Return, by domain, the pieces of buckets that make up each shard.

    Args:
        tokens: Tokens of every bucket, by domain.
        seq_length: Tokens of a sequence.
        weights: Sequences of each domain in lowest terms.

    Raises:
        InputError: a shard would have no sequence.
    """
    shards = len(next(iter(tokens.values())))
    unit = min((sum(tokens[s]) // shards - 1) // (seq_length * w) for s, w in weights.items())
    if unit < 1:
        needed = least_tokens(weights, seq_length, shards)
        raise InputError.of(
            f"{ ({d: sum(tokens[d]) for d in weights}) } are the tokens for {shards} shards",
            f"with one sequence of {seq_length} in a shard and the mixture {dict(weights)} they "
            f"need {needed}",
            "data.build.shards=1, a shorter data.seq_length, or more documents",
        )
    pieces = {}
    for domain, weight in weights.items():
        size = unit * weight * seq_length + 1
        sizes = tokens[domain]
        spare = [[b, size, n] for b, n in enumerate(sizes) if n > size]
        pieces[domain] = [[Piece(b, 0, min(n, size))] if n else [] for b, n in enumerate(sizes)]
        for bucket, shard in enumerate(pieces[domain]):
            missing = size - min(sizes[bucket], size)
            while missing:
                source = spare[0]
                taken = min(missing, source[2] - source[1])
                shard.append(Piece(source[0], source[1], source[1] + taken))
                source[1] += taken
                missing -= taken
                if source[1] == source[2]:
                    spare.pop(0)
    return pieces


def assemble(
    bucket: int,
    open_bucket: Callable[[int], Bucket],
    indexed: Indexed,
    labels: Sequence[Label],
    out: Path,
    config: ShuffleConfig,
    left_over: Callable[[str, list[tuple[int, int]]], None] = lambda *_: None,
) -> dict[str, Shard]:
    """Write the shards of one bucket; return them by domain.

    Args:
        bucket: Number of the bucket and of its shards.
        open_bucket: Reads this bucket whole; maps others, of which little is taken.
        indexed: What all buckets hold.
        labels: Of the corpus.
        out: Folder of the shards.
        config: What decides the shards.
        left_over: Is told of each domain the documents that no shard takes, as (chunk, number).

    Raises:
        InputError: there are too few documents, or a bucket cannot be used.
    """
    pieces = cut(indexed.tokens, config.seq_length, config.weights)
    own = open_bucket(bucket)
    shards = {}
    for domain in config.weights:

        def blocks(domain: str = domain) -> Iterator[_Block]:
            for piece in pieces[domain][bucket]:
                source = own if piece.bucket == bucket else open_bucket(piece.bucket)
                yield from source.read(domain, piece.start, piece.stop)

        prefix = out / f"{domain}-{bucket:05}"
        written = _write_shard(prefix, blocks(), own.kinds, labels, config)
        # the pieces that are used follow each other from the start of a bucket
        used = max(
            (p.stop for shard in pieces[domain] for p in shard if p.bucket == bucket), default=0
        )
        sequences = (written.tokens - 1) // config.seq_length
        shards[domain] = Shard(written, sequences, own.losses(domain, used))
        left_over(domain, own.left_over(domain, used))
    return shards


def concatenate(
    buckets: Iterable[Bucket],
    indexed: Indexed,
    labels: Sequence[Label],
    prefix: Path,
    domain: str,
    config: ShuffleConfig,
) -> Written:
    """Write all documents of a domain, bucket after bucket, as one shard.

    Nothing is cut or left over: this is for documents that are held out.
    """

    def blocks() -> Iterator[_Block]:
        for bucket in buckets:
            yield from bucket.read(domain, 0, bucket.tokens(domain))

    return _write_shard(prefix, blocks(), indexed.kinds, labels, config)


def shard_files(prefix: Path) -> list[Path]:
    """Return the files of a shard; the data come first."""
    return [prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx", BLOCKS, LABELS)]


def _write_shard(
    prefix: Path,
    blocks: Iterable[_Block],
    kinds: Sequence[Label],
    labels: Sequence[Label],
    config: ShuffleConfig,
) -> Written:
    """Write documents as `.bin/.idx`, each ended by EOD, and their labels."""
    numbers = {label: number for number, label in enumerate(labels)}
    label_of = np.array([numbers[kind] for kind in kinds], dtype=np.int64)
    counts = np.zeros((len(labels), 2), dtype=np.int64)
    overwritten = 0
    label_writer = LabelWriter(len(labels))
    writer = IndexedWriter(prefix, config.vocab_size)
    try:
        for ids, lengths, of_kind in blocks:
            last = np.cumsum(lengths) - 1
            overwritten += int((ids[last] != config.eod_id).sum())
            ids[last] = config.eod_id
            writer.append(ids, lengths)
            mine = label_of[of_kind]
            label_writer.append(lengths, mine)
            np.add.at(counts, mine, np.stack([np.ones_like(lengths), lengths], axis=1))
        writer.finish()
        label_writer.finish(prefix.with_name(prefix.name + LABELS))
    finally:
        writer.close()
    documents, tokens = counts.sum(axis=0).tolist()
    by_label = {number: (row[0], row[1]) for number, row in enumerate(counts.tolist()) if row[0]}
    return Written(
        prefix=prefix.name,
        documents=documents,
        tokens=tokens,
        overwritten_tokens=overwritten,
        languages=_by_language(by_label, labels),
        labels=by_label,
    )


def _by_language(
    found: Mapping[int, tuple[int, int]], labels: Sequence[Label]
) -> dict[str, dict[str, int]]:
    """Return documents and tokens of every language."""
    languages: dict[str, Counter[str]] = {}
    for number, (documents, tokens) in found.items():
        counter = languages.setdefault(str(labels[number].language), Counter())
        counter.update(documents=documents, tokens=tokens)
    return {language: dict(languages[language]) for language in sorted(languages)}


@dataclass(frozen=True)
class Total:
    """What training has of a domain."""

    documents: int
    tokens: int
    sequences: int
    languages: dict[str, dict[str, int]]
    """Documents and tokens of each, most tokens first."""
    labels: dict[int, tuple[int, int]]
    """Documents and tokens of each that there is, by number."""
    tally: Tally


def total_of(domain: str, shards: Iterable[Shard]) -> Total:
    """Add the shards of a domain up.

    Raises:
        RuntimeError: documents or tokens were lost or invented, a bug.
    """
    shards = list(shards)
    written = Written.total(shard.written for shard in shards)
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(sequences=shard.sequences, **shard.losses._asdict())
    if total["tokens_in"] != written.tokens + total["tokens_dropped"]:
        raise RuntimeError(
            f"shuffle of {domain}: {written.tokens} tokens do not add up with {total}"
        )
    kept = total["documents_in"] - total["documents_dropped"]
    tally = Tally(f"shuffle {domain}", rows_in=total["documents_in"], rows_out=kept)
    tally.drops["left_over"] = total["documents_dropped"]
    tally.notes["tokens_left_over"] = total["tokens_dropped"]
    tally.notes["cut_in_two"] = written.documents - kept
    tally.notes["last_token_replaced_by_eod"] = written.overwritten_tokens
    tally.check()
    return Total(
        documents=written.documents,
        tokens=written.tokens,
        sequences=total["sequences"],
        languages=written.languages,
        labels=written.labels,
        tally=tally,
    )
