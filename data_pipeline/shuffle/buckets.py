"""Encoded documents between the two passes of the shuffle: pass a, and reading what it wrote.

A task a rank (`to_buckets`) sends every document to a bucket by the hash of its id, copy and seed;
`Bucket` reads one bucket in the order of these hashes. The hash alone decides where a document ends
up, so that neither the number of ranks nor the order in which they ran matters.

    FOLDER/bucket-00003/rank-00001.docs   documents of one bucket from one rank, in blocks
    FOLDER/rank-00001.json                done marker of the rank, written last

A block: its magic number, documents n and tokens (uint64), then per document the hash (two arrays
of uint64), length and kind (int32; index of [domain, language] in the marker), then the token ids;
padded to 8 bytes. The documents of a block stand in the order of their hashes.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.shuffle.bucket_index import BucketIndex, drop_index, open_index, other_ranks
from data_pipeline.tasks.markers import disk_errors, read_marker, write_marker
from loopcoder.config.mixture import lowest_terms
from loopcoder.data.indexed import token_dtype
from loopcoder.errors import InputError, Problem
from loopcoder.storage.digest import fingerprint
from loopcoder.storage.files import sync_folder

FORMAT_VERSION = 1
"""Of the bucket files, the markers and the manifest."""

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
    """Shards a domain; see `num_buckets`."""
    seed: int = 0
    mixture: Mapping[str, float] = field(default_factory=lambda: {"text": 1, "code": 1})
    """Tokens of each domain."""

    @property
    def weights(self) -> dict[str, int]:
        """Return the mixture in lowest terms, in the order in which domains are listed."""
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
    domain: str
    language: str
    document_id: str
    copy: int = 1
    """1, or higher for a repetition; (document_id, copy) is unique in the corpus."""


def num_buckets(
    tokens: int, documents: int, vocab_size: int, memory_bytes: int, margin: float = 1.25
) -> int:
    """Return how many buckets make each fit in half the memory of a task of pass b.

    Args:
        tokens: Of all domains, copies included.
        documents: Of all domains, copies included.
        vocab_size: Decides the bytes of an id.
        memory_bytes: That one task of pass b may use.
        margin: Size of the largest bucket in that of the average one.
    """
    size = tokens * token_dtype(vocab_size)().itemsize + documents * _DOCUMENT_BYTES
    by_size = -(-int(size * margin) // (memory_bytes // 2))
    return max(1, by_size, -(-documents // MAX_SHARD_DOCUMENTS))


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
            vocabulary, an unknown domain), the folder belongs to another config, or the disk is
            full.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank-{rank:05}.json"
        done = read_marker(path, config.bucket_fingerprint)
        if done is not None:
            if done["num_ranks"] != num_ranks:
                raise other_ranks(path, done["num_ranks"], num_ranks)
            sizes = {name: entry["bytes"] for name, entry in done["files"].items()}
            if sizes_of(folder, sizes) == sizes:
                return done
            path.unlink()
        drop_index(folder)
        for left_over in folder.glob(f"bucket-*/rank-{rank:05}.docs*"):
            left_over.unlink()
        buffers = _Buffers(folder, rank, config)
        for record in records:
            buffers.add(record)
            if buffers.num_bytes > buffer_bytes:
                buffers.flush()
        files = buffers.finish()
        return write_marker(
            path,
            config.bucket_fingerprint,
            num_ranks=num_ranks,
            kinds=[list(kind) for kind in buffers.kinds],
            documents=buffers.documents,
            files=files,
        )


class _Buffers:
    """Documents of one rank, by bucket, until they are written."""

    def __init__(self, folder: Path, rank: int, config: ShuffleConfig) -> None:
        self._folder, self._rank, self._config = folder, rank, config
        self._dtype = token_dtype(config.vocab_size)
        self._domains = set(config.weights)
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
        if record.domain not in self._domains:
            raise InputError.of(
                f"document {record.document_id} is of the domain {record.domain!r}",
                f"the mixture has {', '.join(self._config.weights)}",
                "leave such documents out, or add the domain to the mixture",
            )
        kind = self._kind_index.setdefault((record.domain, record.language), len(self._kind_index))
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
            for (domain, _), count, tokens in zip(
                self.kinds,
                np.bincount(kinds, minlength=len(self.kinds)).tolist(),
                np.bincount(kinds, weights=lengths, minlength=len(self.kinds)).tolist(),
                strict=True,
            ):
                if count:
                    entry["documents"][domain] = entry["documents"].get(domain, 0) + count
                    entry["tokens"][domain] = entry["tokens"].get(domain, 0) + int(tokens)
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
            sync_folder(final.parent)
            entry["xxh3_128"] = self._digests[bucket].hexdigest()
            out[str(final.relative_to(self._folder))] = entry
        sync_folder(self._folder)
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


class Bucket:
    """The documents of one bucket in the order of their hashes.

    Read whole, after a comparison with the hashes in the markers; or, to take a few documents from
    the end of another task's bucket, mapped.
    """

    def __init__(
        self,
        bucket: int,
        index: BucketIndex,
        config: ShuffleConfig,
        memory_bytes: int | None = None,
    ) -> None:
        self.number = bucket
        self.kinds = index.kinds
        paths = list(index.files(bucket))
        size = sum(entry["bytes"] for _, entry, _ in paths)
        if memory_bytes is not None and size > memory_bytes // 2:
            enough = config.num_buckets * -(-5 * size // (2 * memory_bytes))
            raise InputError.of(
                f"bucket {bucket} has {size:,} bytes, the task {memory_bytes:,} bytes of memory",
                "a bucket is permuted in memory and must fit in half of it",
                f"data.build.shards={enough}, or data.build.worker_bytes={2 * size}",
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
                        f"delete {index.folder}/{path.stem}.json and run that rank again",
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

    def _of_domain(self, domain: str) -> NDArray[np.int64]:
        mine = [i for i, kind in enumerate(self.kinds) if kind[0] == domain]
        return np.flatnonzero(np.isin(self._kinds, mine))

    def read(
        self, domain: str, start: int, stop: int
    ) -> Iterator[tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]]:
        """Yield (ids, lengths, kinds) of tokens [start, stop) of a domain, in pieces."""
        mine = self._of_domain(domain)
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

    def losses(self, domain: str, used: int) -> dict[str, Any]:
        """Return what there was of a domain, and what of it lies behind its first `used` tokens."""
        mine = self._of_domain(domain)
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


def index_of(folder: Path, config: ShuffleConfig) -> BucketIndex:
    """Return the files of every bucket; all ranks of pass a must be done."""
    domains, buckets = tuple(config.weights), config.num_buckets
    return open_index(folder, config.bucket_fingerprint, domains, buckets)


def sizes_of(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """Return the sizes of those files that exist."""
    paths = {name: folder / name for name in names}
    return {name: path.stat().st_size for name, path in paths.items() if path.exists()}
