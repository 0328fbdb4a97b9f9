"""The global shuffle in two passes, and the shards that training reads.

Pass a (`to_buckets`, a task a rank) sends every encoded document to a bucket by the hash of its id,
copy and seed. Pass b (`assemble`, a task a bucket) sorts a bucket by that hash and writes one
Megatron `.bin/.idx` pair a side. `seal` records all of it. The hash alone decides where a document
ends up, so that neither the number of ranks nor the order in which they ran matters.

Files, each written as .tmp, synced and renamed:

    FOLDER/bucket-00003/rank-00001.docs   documents of one bucket from one rank, in blocks
    FOLDER/rank-00001.json                done marker of pass a, written last
    OUT/text-00003.bin .idx               one shard; code-00003 has as many sequences
    OUT/shard-00003.json                  done marker of pass b, written last
    OUT/shards.json                       the manifest, when all shards are there

A block: its magic number, documents n and tokens (uint64), then per document the hash (two arrays
of uint64), length and kind (int32; index of [side, language] in the marker), then the token ids;
padded to 8 bytes. The documents of a block stand in the order of their hashes.

The cut. All shards have the same size: with T_s tokens of side s in all, B buckets, sequences of L
tokens and the mixture a_s in lowest terms, u = min_s floor((T_s // B - 1) / (L a_s)), and a shard
of side s has u a_s sequences, that is exactly u a_s L + 1 tokens (the last label included). A shard
takes its own bucket in hash order. What a bucket has too much goes to those that have too little,
in the order of their numbers; what then remains is dropped and counted. A document that lies across
the end of a shard or of a bucket's part is cut there, its last token within becoming an EOD, so
that every entry of an index still ends in one EOD.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.durable import fingerprint, fsync_folder, write_json
from data_pipeline.megatron_io import IndexedWriter, token_dtype
from data_pipeline.plan import lowest_terms
from data_pipeline.schema import Tally
from loopcoder.checkpoint.digest import file_digest
from loopcoder.errors import InputError, Problem

FORMAT_VERSION = 1
"""Of the bucket files, the markers and the manifest."""

SHARDS = "shards.json"

MAX_SHARD_DOCUMENTS = 2**30
"""Documents planned for a bucket; megatron-core's int32 wraps at twice as many in a prefix."""

_MAGIC = 0x31544B4255424C50
_HEADER_BYTES = 24
_DOCUMENT_BYTES = 24
"""Of the columns of a block."""
_OVERHEAD_BYTES = 250
"""A document in a buffer of pass a beyond its ids: the Python objects."""
_CHUNK_TOKENS = 1 << 22
"""Gathered and written at a time in pass b."""
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class ShuffleConfig:
    """What decides the shards."""

    source: str
    """Fingerprint of the documents and their ids: inputs, plan, tokenizer, code."""
    vocab_size: int
    eod_id: int
    seq_length: int
    """Tokens of a training sequence."""
    num_buckets: int
    """Shards a side; see `num_buckets`."""
    seed: int = 0
    mixture: Mapping[str, float] = field(default_factory=lambda: {"text": 1, "code": 1})
    """Tokens of each side."""

    @property
    def weights(self) -> dict[str, int]:
        """Return the mixture in lowest terms, in the order in which sides are listed."""
        return lowest_terms(self.mixture)

    @property
    def bucket_fingerprint(self) -> str:
        """Return the hash of what decides pass a; another seq_length can use the same buckets."""
        return fingerprint(
            FORMAT_VERSION,
            self.source,
            self.vocab_size,
            self.eod_id,
            self.num_buckets,
            self.seed,
            sorted(self.weights),
        )

    @property
    def fingerprint(self) -> str:
        """Return the hash of what decides the shards."""
        return fingerprint(self.bucket_fingerprint, self.seq_length, self.weights)


class Record(NamedTuple):
    """One encoded document."""

    ids: NDArray[np.integer]
    """Token ids; the last is EOD and no other. Not copied: they must stay as they are."""
    side: str
    language: str
    document_id: str
    copy: int = 1
    """1, or higher for a repetition; (document_id, copy) is unique in the corpus."""


class Piece(NamedTuple):
    """Tokens [start, stop) of one side of a bucket in hash order."""

    bucket: int
    start: int
    stop: int


def num_buckets(
    tokens: int, documents: int, vocab_size: int, memory_bytes: int, margin: float = 1.25
) -> int:
    """Return how many buckets make each fit in half the memory of a task of pass b.

    Args:
        tokens: Of all sides, copies included.
        documents: Of all sides, copies included.
        vocab_size: Decides the bytes of an id.
        memory_bytes: That one task of pass b may use.
        margin: Size of the largest bucket in that of the average one.
    """
    size = tokens * token_dtype(vocab_size)().itemsize + documents * _DOCUMENT_BYTES
    by_size = -(-int(size * margin) // (memory_bytes // 2))
    return max(1, by_size, -(-documents // MAX_SHARD_DOCUMENTS))


# Pass a


def to_buckets(
    records: Iterable[Record],
    folder: Path,
    rank: int,
    num_ranks: int,
    config: ShuffleConfig,
    buffer_bytes: int = 1 << 28,
) -> dict[str, Any]:
    """Send one rank's documents to the buckets; a rank that is done is not read again.

    Args:
        records: In any order.
        folder: Of the buckets, the same for all ranks.
        rank: Of num_ranks, which share the documents between them in any way.
        num_ranks: Ranks that `assemble` waits for.
        config: The same for all ranks.
        buffer_bytes: Memory for documents that are not written yet.

    Returns:
        The content of the done marker.

    Raises:
        InputError: a document is unfit (no EOD at its end or one inside, an id outside the
            vocabulary, an unknown side), the folder belongs to another config, or the disk is full.
    """
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank-{rank:05}.json"
        done = _read_marker(path, config.bucket_fingerprint)
        if done is not None:
            if done["num_ranks"] != num_ranks:
                raise _other_ranks(path, done["num_ranks"], num_ranks)
            sizes = {name: entry["bytes"] for name, entry in done["files"].items()}
            if _sizes(folder, sizes) == sizes:
                return done
            path.unlink()
        for left_over in folder.glob(f"bucket-*/rank-{rank:05}.docs*"):
            left_over.unlink()
        buffers = _Buffers(folder, rank, config)
        for record in records:
            buffers.add(record)
            if buffers.num_bytes > buffer_bytes:
                buffers.flush()
        files = buffers.finish()
        marker = {
            "fingerprint": config.bucket_fingerprint,
            "num_ranks": num_ranks,
            "kinds": [list(kind) for kind in buffers.kinds],
            "documents": buffers.documents,
            "files": files,
        }
        write_json(path, marker)
        return marker


class _Buffers:
    """Documents of one rank, by bucket, until they are written."""

    def __init__(self, folder: Path, rank: int, config: ShuffleConfig) -> None:
        self._folder, self._rank, self._config = folder, rank, config
        self._dtype = token_dtype(config.vocab_size)
        self._sides = set(config.weights)
        self._waiting: dict[int, list[tuple[bytes, int, NDArray[Any], str]]] = {}
        self._files: dict[int, dict[str, Any]] = {}
        self._digests: dict[int, Any] = {}
        self._kind_index: dict[tuple[str, str], int] = {}
        self.num_bytes = 0
        self.documents = 0

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return list(self._kind_index)

    def add(self, record: Record) -> None:
        if record.side not in self._sides:
            raise InputError.of(
                f"document {record.document_id} is of the side {record.side!r}",
                f"the mixture has {', '.join(self._config.weights)}",
                "leave such documents out, or add the side to the mixture",
            )
        kind = self._kind_index.setdefault((record.side, record.language), len(self._kind_index))
        ids = np.asarray(record.ids)
        if not len(ids):
            raise self._unfit(record.document_id, "is empty")
        key = f"{record.document_id}\0{record.copy}".encode()
        digest = xxhash.xxh3_128_digest(key, seed=self._config.seed)
        bucket = int.from_bytes(digest[:8]) % self._config.num_buckets
        self._waiting.setdefault(bucket, []).append((digest, kind, ids, record.document_id))
        self.num_bytes += ids.nbytes + _OVERHEAD_BYTES
        self.documents += 1

    def flush(self) -> None:
        """Append what waits to the files of its buckets, a block each."""
        for bucket, documents in sorted(self._waiting.items()):
            documents.sort(key=itemgetter(0))
            digests, kinds, arrays, names = zip(*documents, strict=True)
            lengths = np.array([len(a) for a in arrays], dtype=np.int32)
            ids = self._checked(np.concatenate(arrays), lengths, names)
            # the first half of a digest is the high one
            halves = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2).T
            columns = (
                np.array([_MAGIC, len(lengths), len(ids)], dtype=np.uint64),
                *halves.astype(np.uint64, order="C"),
                lengths,
                np.array(kinds, dtype=np.int32),
                ids,
                np.zeros(-ids.nbytes % 8, dtype=np.uint8),
            )
            path = self._path(bucket)
            if bucket not in self._files:
                path.parent.mkdir(exist_ok=True)
                self._files[bucket] = {"bytes": 0, "documents": {}, "tokens": {}}
                self._digests[bucket] = xxhash.xxh3_128()
            entry = self._files[bucket]
            with open(path, "ab") as file:
                for column in columns:
                    file.write(column.view(np.uint8))
                    self._digests[bucket].update(column.view(np.uint8))
                    entry["bytes"] += column.nbytes
            for (side, _), count, tokens in zip(
                self.kinds,
                np.bincount(kinds, minlength=len(self.kinds)).tolist(),
                np.bincount(kinds, weights=lengths, minlength=len(self.kinds)).tolist(),
                strict=True,
            ):
                if count:
                    entry["documents"][side] = entry["documents"].get(side, 0) + count
                    entry["tokens"][side] = entry["tokens"].get(side, 0) + int(tokens)
        self._waiting.clear()
        self.num_bytes = 0

    def finish(self) -> dict[str, dict[str, Any]]:
        """Write the rest, sync and rename; return what the marker says of each file."""
        self.flush()
        out = {}
        for bucket, entry in sorted(self._files.items()):
            path = self._path(bucket)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            final = path.with_suffix("")
            path.replace(final)
            fsync_folder(final.parent)
            entry["xxh3_128"] = self._digests[bucket].hexdigest()
            out[str(final.relative_to(self._folder))] = entry
        fsync_folder(self._folder)
        return out

    def _path(self, bucket: int) -> Path:
        return self._folder / f"bucket-{bucket:05}" / f"rank-{self._rank:05}.docs.tmp"

    def _checked(
        self, ids: NDArray[Any], lengths: NDArray[np.int32], names: Sequence[str]
    ) -> NDArray[Any]:
        """Return the ids in the type of the files, after a check of every document."""
        ends = np.cumsum(lengths, dtype=np.int64) - 1
        if int(ids.min()) < 0 or int(ids.max()) >= self._config.vocab_size:
            wrong = np.flatnonzero((ids < 0) | (ids >= self._config.vocab_size))
            fact = "has ids outside the vocabulary"
        else:
            found = np.flatnonzero(ids == self._config.eod_id)
            if np.array_equal(found, ends):
                return ids.astype(self._dtype, copy=False)
            wrong, fact = np.setxor1d(found, ends), "does not have its EOD at its end only"
        raise self._unfit(names[int(np.searchsorted(ends, wrong[0]))], fact)

    def _unfit(self, document_id: str, fact: str) -> InputError:
        return InputError.of(
            f"document {document_id} {fact} (EOD is {self._config.eod_id}, the vocabulary "
            f"{self._config.vocab_size:,})",
            "documents are told apart by their EOD, and embeddings exist for the vocabulary only",
            "encode the documents with the tokenizer that the config names",
        )


# Pass b


def cut(
    tokens: Mapping[str, Sequence[int]], seq_length: int, weights: Mapping[str, int]
) -> dict[str, list[list[Piece]]]:
    """Return, by side, the pieces of buckets that make up each shard.

    Args:
        tokens: Tokens of every bucket, by side.
        seq_length: Tokens of a sequence.
        weights: Sequences of each side in lowest terms.

    Raises:
        InputError: a shard would have no sequence.
    """
    shards = len(next(iter(tokens.values())))
    unit = min((sum(tokens[s]) // shards - 1) // (seq_length * w) for s, w in weights.items())
    if unit < 1:
        needed = {s: shards * (seq_length * w + 1) for s, w in weights.items()}
        raise InputError.of(
            f"the sides have { ({s: sum(tokens[s]) for s in weights}) } tokens for {shards} shards",
            f"with one sequence of {seq_length} in a shard and the mixture {dict(weights)} they "
            f"need {needed}",
            "fewer buckets, a shorter seq_length, or more documents",
        )
    pieces = {}
    for side, weight in weights.items():
        size = unit * weight * seq_length + 1
        sizes = tokens[side]
        spare = [[b, size, n] for b, n in enumerate(sizes) if n > size]
        pieces[side] = [[Piece(b, 0, min(n, size))] if n else [] for b, n in enumerate(sizes)]
        for bucket, shard in enumerate(pieces[side]):
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
    folder: Path,
    out: Path,
    config: ShuffleConfig,
    memory_bytes: int | None = None,
) -> dict[str, Any]:
    """Write the shards of one bucket; one that is done is not written again.

    Args:
        bucket: Number of the bucket and of its shards.
        folder: Where all ranks of pass a are done.
        out: Folder of the shards, the same for all buckets.
        config: The same as in pass a, but for seq_length and the proportions of the mixture.
        memory_bytes: Of this task; the bucket must fit in half of it. None: of the machine.

    Returns:
        The content of the done marker.

    Raises:
        InputError: pass a is not done or was altered, a document came twice, the bucket is too
            large, there are too few documents, or the disk is full.
    """
    with _disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"shard-{bucket:05}.json"
        done = _read_marker(path, config.fingerprint)
        if done is not None:
            sizes = {name: entry["bytes"] for name, entry in done["files"].items()}
            if _sizes(out, sizes) == sizes:
                return done
            path.unlink()
        ranks = _read_ranks(folder, config)
        tokens = _bucket_tokens(ranks, config)
        pieces = cut(tokens, config.seq_length, config.weights)
        own = _Bucket(bucket, folder, ranks, config, memory_bytes or _physical_memory())
        files: dict[str, Any] = {}
        sides = {}
        for side in config.weights:
            stats = _write_shard(side, pieces[side][bucket], own, folder, ranks, out, config)
            # the parts that are used follow each other from the start of a bucket
            used = max(
                (p.stop for shard in pieces[side] for p in shard if p.bucket == bucket), default=0
            )
            sides[side] = stats | own.losses(side, used)
            for suffix in (".bin", ".idx"):
                file = out / (stats["prefix"] + suffix)
                files[file.name] = {"bytes": file.stat().st_size, "xxh3_128": file_digest(file)}
        fsync_folder(out)
        marker = {
            "fingerprint": config.fingerprint,
            "bucket": bucket,
            "sides": sides,
            "files": files,
        }
        write_json(path, marker)
        return marker


class _Bucket:
    """The documents of one bucket in the order of their hashes.

    Read whole, after a comparison with the hashes in the markers; or, to take a few documents from
    the end of another task's bucket, mapped.
    """

    def __init__(
        self,
        bucket: int,
        folder: Path,
        ranks: Sequence[Mapping[str, Any]],
        config: ShuffleConfig,
        memory_bytes: int | None = None,
    ) -> None:
        self.number = bucket
        self.kinds = sorted({(s, language) for marker in ranks for s, language in marker["kinds"]})
        index = {kind: i for i, kind in enumerate(self.kinds)}
        paths = [
            (folder / name, entry, [index[s, language] for s, language in marker["kinds"]])
            for marker in ranks
            for name, entry in marker["files"].items()
            if name.startswith(f"bucket-{bucket:05}/")
        ]
        size = sum(entry["bytes"] for _, entry, _ in paths)
        if memory_bytes is not None and size > memory_bytes // 2:
            enough = config.num_buckets * -(-5 * size // (2 * memory_bytes))
            raise InputError.of(
                f"bucket {bucket} has {size:,} bytes, the task {memory_bytes:,} bytes of memory",
                "a bucket is permuted in memory and must fit in half of it",
                f"num_buckets={enough} from pass a on, or memory_bytes={2 * size}",
            )
        dtype = token_dtype(config.vocab_size)
        blocks: list[NDArray[Any]] = []
        columns: list[tuple[NDArray[Any], ...]] = []
        problems = []
        for path, entry, kind_map in paths:
            try:
                for block in _blocks(path, entry, dtype, whole=memory_bytes is not None):
                    lengths = block[2].astype(np.int64)
                    offsets = np.cumsum(lengths) - lengths
                    kinds = np.array(kind_map, dtype=np.int32)[block[3]]
                    number = np.full(len(lengths), len(blocks), dtype=np.int32)
                    columns.append((block[0], block[1], lengths, kinds, number, offsets))
                    blocks.append(block[4])
            except (OSError, ValueError) as e:
                problems.append(
                    Problem(
                        f"cannot use {path}: {e}",
                        "it was cut off or altered after its rank was done",
                        f"delete {folder}/{path.stem}.json and run that rank again",
                    )
                )
        if problems:
            raise InputError(problems)
        self._blocks = blocks
        if columns:
            high, low, lengths, kinds, number, offsets = (
                np.concatenate(parts) for parts in zip(*columns, strict=True)
            )
        else:
            high = low = np.empty(0, dtype=np.uint64)
            lengths = kinds = number = offsets = np.empty(0, dtype=np.int64)
        order = np.lexsort((low, high))
        high, low = high[order], low[order]
        twice = np.flatnonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1]))
        if len(twice):
            value = f"{int(high[twice[0]]):016x}{int(low[twice[0]]):016x}"
            raise InputError.of(
                f"bucket {bucket} has {len(twice)} documents twice, such as that of hash {value}",
                "(document_id, copy) decides the order and must be unique in the corpus",
                "give every input file to one rank only, and number the copies 1, 2, ...",
            )
        self._lengths, self._kinds = lengths[order], kinds[order]
        self._number, self._offsets = number[order], offsets[order]

    def _of_side(self, side: str) -> NDArray[np.int64]:
        mine = [i for i, kind in enumerate(self.kinds) if kind[0] == side]
        return np.flatnonzero(np.isin(self._kinds, mine))

    def read(
        self, side: str, start: int, stop: int
    ) -> Iterator[tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]]:
        """Yield (ids, lengths, kinds) of tokens [start, stop) of a side, some documents a time."""
        mine = self._of_side(side)
        ends = np.cumsum(self._lengths[mine])
        first = int(np.searchsorted(ends, start, "right"))
        last = int(np.searchsorted(ends, stop, "left")) + 1
        ends, mine = ends[first:last], mine[first:last]
        begins = ends - self._lengths[mine]
        lower, upper = np.maximum(begins, start), np.minimum(ends, stop)
        offsets = self._offsets[mine] + lower - begins
        lengths = upper - lower
        chunk = (np.cumsum(lengths) - lengths) // _CHUNK_TOKENS
        borders = [*np.flatnonzero(np.diff(chunk, prepend=-1)).tolist(), len(mine)]
        for low, high in itertools.pairwise(borders):
            part = slice(low, high)
            ids = np.concatenate(
                [
                    self._blocks[number][offset : offset + length]
                    for number, offset, length in zip(
                        self._number[mine[part]].tolist(),
                        offsets[part].tolist(),
                        lengths[part].tolist(),
                        strict=True,
                    )
                ]
            )
            yield ids, lengths[part], self._kinds[mine[part]]

    def losses(self, side: str, used: int) -> dict[str, Any]:
        """Return what there was of a side, and what of it lies behind its first `used` tokens."""
        mine = self._of_side(side)
        lengths = self._lengths[mine]
        begins = np.cumsum(lengths) - lengths
        dropped = begins >= used
        total = int(lengths.sum())
        return {
            "documents_in": len(mine),
            "tokens_in": total,
            "documents_dropped": int(dropped.sum()),
            "tokens_dropped": total - used,
        }


def _blocks(
    path: Path, entry: Mapping[str, Any], dtype: type[np.generic], *, whole: bool
) -> Iterator[Sequence[Any]]:
    """Yield (high, low, lengths, kinds, ids) of each block of a file."""
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise ValueError(f"it has {size:,} bytes, its marker says {entry['bytes']:,}")
    raw: NDArray[np.uint8]
    raw = np.fromfile(path, dtype=np.uint8) if whole else np.memmap(path, np.uint8, mode="r")
    if whole and xxhash.xxh3_128_hexdigest(raw) != entry["xxh3_128"]:
        raise ValueError("its hash is not the one in its marker")
    at = 0
    while at < size:
        magic, count, tokens = raw[at : at + _HEADER_BYTES].view(np.uint64).tolist()
        if magic != _MAGIC:
            raise ValueError(f"no block begins at byte {at:,}")
        at += _HEADER_BYTES
        high = raw[at : at + 8 * count].view(np.uint64)
        low = raw[at + 8 * count : at + 16 * count].view(np.uint64)
        lengths = raw[at + 16 * count : at + 20 * count].view(np.int32)
        kinds = raw[at + 20 * count : at + 24 * count].view(np.int32)
        at += _DOCUMENT_BYTES * count
        end = at + tokens * dtype().itemsize
        yield high, low, lengths, kinds, raw[at:end].view(dtype)
        at = end + -end % 8


def _write_shard(
    side: str,
    pieces: Sequence[Piece],
    own: _Bucket,
    folder: Path,
    ranks: Sequence[Mapping[str, Any]],
    out: Path,
    config: ShuffleConfig,
) -> dict[str, Any]:
    """Write one `.bin/.idx` and return its statistics."""
    prefix = f"{side}-{own.number:05}"
    counts = np.zeros((len(own.kinds), 2), dtype=np.int64)
    overwritten = 0
    writer = IndexedWriter(out / prefix, config.vocab_size)
    try:
        for piece in pieces:
            foreign = piece.bucket != own.number
            source = _Bucket(piece.bucket, folder, ranks, config) if foreign else own
            for ids, lengths, kinds in source.read(side, piece.start, piece.stop):
                last = np.cumsum(lengths) - 1
                overwritten += int((ids[last] != config.eod_id).sum())
                ids[last] = config.eod_id
                writer.append(ids, lengths)
                np.add.at(counts, kinds, np.stack([np.ones_like(lengths), lengths], axis=1))
        writer.finish()
    finally:
        writer.close()
    documents, tokens = counts.sum(axis=0).tolist()
    return {
        "prefix": prefix,
        "documents": documents,
        "tokens": tokens,
        "sequences": (tokens - 1) // config.seq_length,
        "overwritten_tokens": overwritten,
        "languages": {
            own.kinds[i][1]: {"documents": row[0], "tokens": row[1]}
            for i, row in enumerate(counts.tolist())
            if row[0]
        },
    }


def seal(
    out: Path,
    config: ShuffleConfig,
    wanted_shares: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Write the manifest of the finished shards and return it.

    Args:
        out: Folder of the shards.
        config: That they were made with.
        wanted_shares: Share of every language in its side, such as Plan.shares; validated against.

    Raises:
        InputError: a shard is missing or of another config, or the disk is full.
        RuntimeError: documents or tokens were lost or invented, a bug.
    """
    shards, missing = [], []
    for bucket in range(config.num_buckets):
        marker = _read_marker(out / f"shard-{bucket:05}.json", config.fingerprint)
        if marker is None:
            missing.append(bucket)
        else:
            shards.append(marker)
    if missing:
        raise _not_done("shards", missing, config.num_buckets, out)
    sides, tallies = {}, []
    for side, weight in config.weights.items():
        stats = [marker["sides"][side] for marker in shards]
        total = {
            key: sum(s[key] for s in stats) for key in stats[0] if isinstance(stats[0][key], int)
        }
        if total["tokens_in"] != total["tokens"] + total["tokens_dropped"]:
            raise RuntimeError(f"shuffle of {side}: tokens do not add up: {total}")
        kept = total["documents_in"] - total["documents_dropped"]
        tally = Tally(f"shuffle {side}", rows_in=total["documents_in"], rows_out=kept)
        tally.drops["left_over"] = total["documents_dropped"]
        tally.notes["tokens_left_over"] = total["tokens_dropped"]
        tally.notes["cut_in_two"] = total["documents"] - kept
        tally.notes["last_token_replaced_by_eod"] = total["overwritten_tokens"]
        tally.check()
        tallies.append(tally.as_dict())
        languages: dict[str, Counter[str]] = {}
        for s in stats:
            for language, numbers in s["languages"].items():
                languages.setdefault(language, Counter()).update(numbers)
        by_tokens = sorted(languages.items(), key=lambda item: (-item[1]["tokens"], item[0]))
        sides[side] = {
            "weight": weight,
            "documents": total["documents"],
            "tokens": total["tokens"],
            "sequences": total["sequences"],
            "languages": {language: dict(numbers) for language, numbers in by_tokens},
        }
    prefixes = [
        {"prefix": marker["sides"][side]["prefix"], "side": side, "weight": weight}
        | {key: marker["sides"][side][key] for key in ("documents", "tokens", "sequences")}
        for marker in shards
        for side, weight in config.weights.items()
    ]
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": config.fingerprint,
        "source": config.source,
        "seed": config.seed,
        "vocab_size": config.vocab_size,
        "eod_id": config.eod_id,
        "seq_length": config.seq_length,
        "num_shards": config.num_buckets,
        "stages": tallies,
        "sides": sides,
        "wanted_shares": wanted_shares,
        "blend": prefixes,
        "files": {name: entry for marker in shards for name, entry in marker["files"].items()},
    }
    with _disk_errors(out):
        write_json(out / SHARDS, manifest)
    return manifest


def blend(out: Path, manifest: Mapping[str, Any]) -> tuple[list[str], list[float]]:
    """Return the prefixes and weights for megatron-core's blend: text, code, text, code, ...

    In this order and with these weights, every even batch is exactly half code for the mixture
    1 : 1, and all shards end together, after one epoch.
    """
    total = sum(entry["weight"] for entry in manifest["blend"])
    return (
        [str(out / entry["prefix"]) for entry in manifest["blend"]],
        [entry["weight"] / total for entry in manifest["blend"]],
    )


# Markers


def _read_marker(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the content of a done marker, None if there is none."""
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))
        found = marker["fingerprint"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError.of(
            f"cannot read {path}: {e!r}",
            "markers are written whole; this one was altered",
            f"delete {path} and run its task again",
        ) from e
    if found != fingerprint:
        raise InputError.of(
            f"{path} has the fingerprint {found}, this config {fingerprint}",
            "what is there was made from other documents or another config; the two must not mix",
            f"another folder, or delete {path.parent}",
        )
    return dict(marker)


def _read_ranks(folder: Path, config: ShuffleConfig) -> list[dict[str, Any]]:
    """Return the markers of all ranks of pass a."""
    paths = sorted(folder.glob("rank-*.json"))
    markers = {int(p.stem[5:]): _read_marker(p, config.bucket_fingerprint) for p in paths}
    found = {rank: marker for rank, marker in markers.items() if marker is not None}
    numbers = {marker["num_ranks"] for marker in found.values()}
    if len(numbers) > 1:
        raise _other_ranks(folder, *sorted(numbers)[:2])
    num_ranks = numbers.pop() if numbers else 1
    missing = [rank for rank in range(num_ranks) if rank not in found]
    if missing:
        raise _not_done("ranks of pass a", missing, num_ranks, folder)
    return [found[rank] for rank in range(num_ranks)]


def _bucket_tokens(
    ranks: Sequence[Mapping[str, Any]], config: ShuffleConfig
) -> dict[str, list[int]]:
    tokens = {side: [0] * config.num_buckets for side in config.weights}
    for marker in ranks:
        for name, entry in marker["files"].items():
            bucket = int(name.split("/")[0].removeprefix("bucket-"))
            for side, number in entry["tokens"].items():
                tokens[side][bucket] += number
    return tokens


def _not_done(what: str, missing: Sequence[int], total: int, folder: Path) -> InputError:
    some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
    return InputError.of(
        f"{len(missing)} of {total} {what} are not done in {folder}: {some}",
        "where a document goes depends on all of them",
        "run these tasks; those that are done are skipped",
    )


def _other_ranks(path: Path, found: int, wanted: int) -> InputError:
    return InputError.of(
        f"{path} is from a run of {found} ranks, this one has {wanted}",
        "ranks of two runs hold other parts of the documents: some would come twice, some never",
        f"num_ranks={found}, or delete the folder of the buckets",
    )


def _sizes(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """Return the sizes of those files that exist."""
    paths = {name: folder / name for name in names}
    return {name: path.stat().st_size for name, path in paths.items() if path.exists()}


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk into an error for the user; what was begun is redone by the next run."""
    try:
        yield
    except OSError as e:
        if e.errno not in _DISK_FULL:
            raise
        raise InputError.of(
            f"no space left in {folder}: {e}",
            f"both passes need the size of the token ids, and {shutil.disk_usage(folder).free:,} "
            "bytes are free",
            "free some space and run the same task again, or use a folder on a larger disk",
        ) from e
