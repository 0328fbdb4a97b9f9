"""The stages of the shuffle: tokenise into buckets, index them, assemble shards, check them.

WORK/buckets/    documents to train on, by bucket: see buckets.py and bucket_index.py
WORK/held_out/   the others, in the same form
WORK/corpus/     train/ and val/ of the finished folder
WORK/frequencies/   how often each token is, by shard: see frequencies.py
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.balance.plan import Planned, quotas_of, target_for
from data_pipeline.balance.room import check_room
from data_pipeline.balance.selection import OtherContentError, select_chunk
from data_pipeline.batches import batches
from data_pipeline.repositories.chunks import kept, kept_rows
from data_pipeline.schema import Document, Tally
from data_pipeline.shuffle.bucket_index import (
    Indexed,
    files_of,
    index_file,
    labels_of,
    write_index,
)
from data_pipeline.shuffle.bucket_reader import Bucket
from data_pipeline.shuffle.buckets import (
    Bucketed,
    Record,
    ShuffleConfig,
    num_buckets,
    to_buckets,
)
from data_pipeline.shuffle.frequencies import counts_file, save_counts
from data_pipeline.shuffle.pieces import ByEntry, ByNumber, number_in_chunk
from data_pipeline.shuffle.shards import Shard, Written, assemble, concatenate, shard_files
from data_pipeline.shuffle.validate import label_problems, pair_problems
from data_pipeline.tasks.dropped import DropList, Dropped
from data_pipeline.tasks.origins import Origins
from data_pipeline.tasks.work import Done, Output, Result, Work, damaged
from data_pipeline.tokenizer.count import BATCH_CHARS, Counts, Encoding, Tokenizer
from loopcoder.data.labels import Label
from loopcoder.data.unigram import count_tokens
from loopcoder.errors import InputError, Problem
from loopcoder.storage.files import FileEntry

_BUFFER_BYTES = 1 << 27


@dataclass(frozen=True)
class Tokenised(Result):
    """What was taken of a chunk."""

    stage: ClassVar[str] = "tokenise"
    tallies: list[Tally]
    """Of holding out, and of the quotas."""
    train: Bucketed
    held_out: Bucketed
    origins: Origins
    """What is taken of each source and package, copies included."""
    dropped: Dropped


@dataclass(frozen=True)
class BucketsIndexed(Result):
    """What the buckets hold."""

    stage: ClassVar[str] = "index"
    train: Indexed
    held_out: Indexed
    labels: list[Label]
    """Of all documents, whatever chunk has them first: by domain, language and source."""


@dataclass(frozen=True)
class Assembled(Result):
    """The shards of one bucket."""

    stage: ClassVar[str] = "assemble"
    shards: dict[str, Shard]
    """By domain."""
    dropped: Dropped


@dataclass(frozen=True)
class HeldOut(Result):
    """What is held out of a domain."""

    stage: ClassVar[str] = "hold_out"
    domain: str
    written: Written


@dataclass(frozen=True)
class Checked(Result):
    """The shards of one bucket are sound."""

    stage: ClassVar[str] = "validate"


def tokenise(work: Work, chunk: int) -> Output:
    """Send what the plan takes of a chunk to the buckets, and what is held out to its own."""
    _check_room(work)
    counts = Counts.of(work, chunk)
    entries = counts.entries
    out = counts.held_out(work.data.build.val_fraction, work.result(Planned).smallest)
    kinds = [counts.kinds[k] for k in entries["kind"][~out].tolist()]
    copies = np.zeros(len(entries), dtype=np.int64)
    places = ByEntry(work, chunk, entries)
    with DropList(work, Tokenised.stage, chunk) as drops:
        split, quota = drops.tally("hold out"), drops.tally("quota")
        trained = np.flatnonzero(~out)
        try:
            copies[~out] = select_chunk(
                quotas_of(work, chunk),
                kinds,
                entries["length"][~out],
                lambda number: places(int(trained[number])),
                quota,
            )
        except OtherContentError as error:
            raise damaged(work.folder, f"chunk {chunk} has {error}") from None
        split.rows_in, split.rows_out = len(entries), int((~out).sum())
        for entry in np.flatnonzero(out).tolist():
            split.drop("held_out", places(entry))
    encoding = Encoding.of(work)
    origins = Origins()
    train, train_files = to_buckets(
        _records(encoding, _chosen(work, chunk, encoding, entries, copies, origins)),
        _train(work),
        chunk,
        _train_config(work),
        _BUFFER_BYTES,
    )
    if train.documents != int(copies.sum()):
        raise RuntimeError(f"{train.documents} documents in the buckets, {copies.sum()} chosen")
    held_out, held_out_files = to_buckets(
        _records(encoding, _held_out(work, chunk, entries, out)),
        _held_out_folder(work),
        chunk,
        _held_out_config(work),
        _BUFFER_BYTES,
    )
    split.notes["held_out_documents"] = held_out.documents
    split.check()
    return Output(
        Tokenised([split, quota], train, held_out, origins, drops.summary()),
        files=drops.files,
        hashed=train_files | held_out_files,
        bytes_in=int((copies * entries["bytes"]).sum()),
        left_out=quota.drops,
    )


def index_buckets(work: Work, _: int) -> Output:
    """Collect the files of every bucket, once for all tasks that read them."""
    folders = (_train(work), _held_out_folder(work))
    sizes = (_train_config(work).num_buckets, _held_out_config(work).num_buckets)
    train, held_out = (
        write_index(folder, _of_chunks(work, folder), work.domains, size)
        for folder, size in zip(folders, sizes, strict=True)
    )
    tokens = {domain: sum(train.tokens[domain]) for domain in work.domains}
    check_room(work.data, work.weights, tokens, sizes[0], partial(target_for, work))
    files = [
        index_file(folder, bucket)
        for folder, size in zip(folders, sizes, strict=True)
        for bucket in range(size)
    ]
    labels = labels_of(work.domains, train, held_out)
    return Output(BucketsIndexed(train, held_out, labels), files=files)


def num_shards(work: Work) -> int:
    """Return how many shards each domain has."""
    return _train_config(work).num_buckets


def assemble_shards(work: Work, bucket: int) -> Output:
    """Write the shards of one bucket."""
    config, done = _train_config(work), work.done(BucketsIndexed)
    indexed = done.result.train

    def open_bucket(number: int) -> Bucket:
        return _open(work, done, _train(work), number, indexed, config, whole=number == bucket)

    out = work.corpus / "train"
    out.mkdir(parents=True, exist_ok=True)
    places = ByNumber(work)
    with DropList(work, Assembled.stage, bucket) as drops:

        def left_over(domain: str, documents: list[tuple[int, int]]) -> None:
            tally = drops.tally(f"shuffle {domain}")
            for chunk, number in documents:
                tally.drop("left_over", places(chunk, number))

        shards = assemble(bucket, open_bucket, indexed, done.result.labels, out, config, left_over)
    files = [path for shard in shards.values() for path in shard_files(out / shard.written.prefix)]
    return Output(
        Assembled(shards, drops.summary()),
        files=[*files, *drops.files],
        bytes_in=sum(path.stat().st_size for path in files),
        left_out={"left_over": sum(shard.losses.documents_dropped for shard in shards.values())},
    )


def write_held_out(work: Work, index: int) -> Output:
    """Write the documents of a domain that are held out."""
    domain = work.domains[index]
    config, done = _held_out_config(work), work.done(BucketsIndexed)
    indexed = done.result.held_out
    prefix = work.corpus / "val" / domain
    prefix.parent.mkdir(parents=True, exist_ok=True)
    buckets = (
        _open(work, done, _held_out_folder(work), number, indexed, config, whole=False)
        for number in range(config.num_buckets)
    )
    written = concatenate(buckets, indexed, done.result.labels, prefix, domain, config)
    files = shard_files(prefix)
    counts = counts_file(work, "val", index)
    save_counts(counts, count_tokens(files[0], config.vocab_size))
    return Output(HeldOut(domain, written), files=[*files, counts])


def validate_shards(work: Work, bucket: int) -> Output:
    """Refuse shards whose content is not sound; count their tokens while they are read."""
    config, done = _train_config(work), work.done(Assembled, bucket)
    problems: list[Problem] = []
    labels = work.result(BucketsIndexed).labels
    counts = np.zeros((len(work.domains), config.vocab_size), dtype=np.int64)
    for name in done.files:
        done.file(done.folder / name)
    for domain, shard in done.result.shards.items():
        prefix = work.corpus / "train" / shard.written.prefix
        found = (shard.written.documents, shard.written.tokens)
        fix = f"delete {work.folder} and start the same command again"
        here = counts[work.domains.index(domain)]
        problems += pair_problems(prefix, found, config.vocab_size, config.eod_id, fix, here)
        problems += label_problems(prefix, found, labels, domain, fix)
    if problems:
        raise InputError(problems)
    path = counts_file(work, "train", bucket)
    save_counts(path, counts)
    return Output(Checked(), files=[path])


# What the stages share


def _train(work: Work) -> Path:
    return work.folder / "buckets"


def _held_out_folder(work: Work) -> Path:
    return work.folder / "held_out"


def _train_config(work: Work) -> ShuffleConfig:
    plan = work.result(Planned)
    return _config(work, plan, plan.tokens, plan.documents, work.data.build.shards)


def _held_out_config(work: Work) -> ShuffleConfig:
    plan = work.result(Planned)
    return _config(work, plan, plan.held_out_tokens, plan.held_out_documents, None)


def _check_room(work: Work) -> None:
    """Raise InputError if not every shard would have a sequence, before anything is tokenised."""
    plan, weights = work.result(Planned), work.weights
    tokens = {d: plan.tokens * weight // sum(weights.values()) for d, weight in weights.items()}
    shards = _train_config(work).num_buckets
    check_room(work.data, weights, tokens, shards, partial(target_for, work))


def _config(
    work: Work, plan: Planned, tokens: int, documents: int, buckets: int | None
) -> ShuffleConfig:
    tokenizer = work.result(Tokenizer)
    enough = num_buckets(tokens, documents, tokenizer.vocab_size, plan.worker_bytes)
    return ShuffleConfig(
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
        seq_length=work.data.seq_length,
        num_buckets=buckets or enough,
        weights=work.weights,
    )


def _of_chunks(work: Work, folder: Path) -> Iterator[tuple[Bucketed, Callable[[Path], FileEntry]]]:
    for done in work.all_done(Tokenised):
        train = folder == _train(work)
        yield (done.result.train if train else done.result.held_out), done.entry


def _open(
    work: Work,
    done: Done[BucketsIndexed],
    folder: Path,
    number: int,
    indexed: Indexed,
    config: ShuffleConfig,
    *,
    whole: bool,
) -> Bucket:
    """Read a bucket; one that is read whole must fit in half of the task's memory."""
    done.file(index_file(folder, number))
    files = files_of(folder, number)
    size = sum(file.entry["bytes"] for file in files)
    memory = work.data.build.worker_bytes
    if whole and size > memory // 2:
        enough = config.num_buckets * -(-5 * size // (2 * memory))
        raise InputError.of(
            f"bucket {number} has {size:,} bytes, a task {memory:,} bytes of memory",
            "a bucket is permuted in memory and must fit in half of it",
            f"data.build.shards={enough}, or data.build.worker_bytes={2 * size}",
        )
    return Bucket(number, files, indexed.kinds, config, work=work.folder, whole=whole)


# Which documents of a chunk are taken


class _Chosen(NamedTuple):
    piece: Document
    copy: int
    number: int
    """See `number_in_chunk`."""


def _groups(
    work: Work, chunk: int, entries: NDArray[np.void]
) -> Iterator[tuple[Document, int, int]]:
    """Yield each document of a chunk with its entries, [start, stop)."""
    starts = np.flatnonzero(entries["piece"] == 0).tolist()
    documents = kept(work, chunk, Tally("dedup"))
    borders = itertools.pairwise([*starts, len(entries)])
    for document, (start, stop) in zip(documents, borders, strict=True):
        yield document, start, stop


def _chosen(
    work: Work,
    chunk: int,
    encoding: Encoding,
    entries: NDArray[np.void],
    copies: NDArray[np.int64],
    origins: Origins,
) -> Iterator[_Chosen]:
    """Yield all that is taken of a chunk, and count it by origin."""
    rows, wanted = kept_rows(work, chunk).tolist(), copies.tolist()
    used = [(copies * entries[name]).tolist() for name in ("bytes", "length")]
    for (document, start, stop), row in zip(_groups(work, chunk, entries), rows, strict=True):
        mine = wanted[start:stop]
        if not any(mine):
            continue
        origins.add(document, max(mine), *(sum(sizes[start:stop]) for sizes in used))
        pieces = [document] if stop - start == 1 else encoding.split(document)
        for place, (piece, count) in enumerate(zip(pieces, mine, strict=True)):
            number = number_in_chunk(row, place if len(pieces) > 1 else None)
            for copy in range(1, count + 1):
                yield _Chosen(piece, copy, number)


def _held_out(
    work: Work, chunk: int, entries: NDArray[np.void], out: NDArray[np.bool_]
) -> Iterator[_Chosen]:
    """Yield the documents of a chunk that are held out, whole; copy 0 is never rearranged."""
    if not out.any():
        return
    for document, start, _ in _groups(work, chunk, entries):
        if out[start]:
            yield _Chosen(document, 0, 0)


def _records(encoding: Encoding, chosen: Iterable[_Chosen]) -> Iterator[Record]:
    plain = replace(encoding, specials=None)
    for batch in batches(chosen, lambda item: len(item.piece.text), BATCH_CHARS):
        pieces = [item.piece for item in batch]
        copies = [item.copy for item in batch]
        how = encoding if copies[0] else plain
        for place, ids in how.encode(pieces, copies):
            piece = pieces[place]
            label = Label(piece.domain, piece.language, piece.source)
            yield Record(ids, label, piece.id, copies[place], batch[place].number)
