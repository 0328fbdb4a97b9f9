"""Encoded documents between the two halves of the shuffle: written by chunk, read by bucket.

`to_buckets` sends every document of a chunk to a bucket by the hash of its id, copy and seed;
`bucket_reader.Bucket` reads one bucket in the order of these hashes. The hash alone decides where a
document ends up, so that neither the chunks nor the order in which they were tokenised matter.

    FOLDER/bucket-00003/00001.docs   documents of bucket 3 from chunk 1, in blocks

A block: its magic number, documents n and tokens (uint64), then per document the hash (two arrays
of uint64), what it is in its chunk (uint64), length and kind (int32; index of its label in what
`to_buckets` returns), then the token ids; padded to 8 bytes. The documents of a block stand in
the order of their hashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from loopcoder.data.indexed import token_dtype
from loopcoder.data.labels import Label
from loopcoder.errors import InputError
from loopcoder.storage.files import FileEntry

MAX_SHARD_DOCUMENTS = 2**30
"""Documents planned for a bucket; megatron-core's int32 wraps at twice as many in a prefix."""

MAGIC = 0x32544B4255424C50
HEADER_BYTES = 24
DOCUMENT_BYTES = 32
"""Of the columns of a block."""
_PLANNED_BYTES = 24
"""Of these, as the number of shards counts them: it must stay what it was for older corpora."""
_OVERHEAD_BYTES = 250
"""Python overhead per buffered document, on top of its token ids."""


@dataclass(frozen=True)
class ShuffleConfig:
    """What decides the shards, besides the documents."""

    vocab_size: int
    eod_id: int
    seq_length: int
    """Tokens of a training sequence."""
    num_buckets: int
    """Shards of a domain; see `num_buckets`."""
    weights: Mapping[str, int]
    """Tokens of each domain in lowest terms, in the order in which domains are listed."""
    seed: int = 0


class Record(NamedTuple):
    """One encoded document."""

    ids: NDArray[np.integer]
    """Token ids; the last is EOD and no other. Not copied: they must stay as they are."""
    label: Label
    document_id: str
    copy: int = 1
    """1, or higher for a repetition; (document_id, copy) is unique in the corpus."""
    number: int = 0
    """What it is in its chunk; whoever sends it to the buckets knows what it means."""


@dataclass(frozen=True)
class Bucketed:
    """What one chunk sent to the buckets."""

    kinds: list[Label]
    """Of each kind in the files."""
    documents: int
    tokens: dict[int, dict[str, int]]
    """By bucket and domain; buckets that nothing was sent to are not named."""


def num_buckets(
    tokens: int, documents: int, vocab_size: int, memory_bytes: int, margin: float = 1.25
) -> int:
    """Return how many buckets make each fit in half the memory of a task that assembles it.

    Args:
        tokens: Of all domains, copies included.
        documents: Of all domains, copies included.
        vocab_size: Decides the bytes of an id.
        memory_bytes: That one task may use.
        margin: Largest bucket size as a multiple of the mean.
    """
    size = tokens * token_dtype(vocab_size)().itemsize + documents * _PLANNED_BYTES
    by_size = -(-int(size * margin) // max(1, memory_bytes // 2))
    return max(1, by_size, -(-documents // MAX_SHARD_DOCUMENTS))


def bucket_file(folder: Path, bucket: int, chunk: int) -> Path:
    """Return where the documents of a chunk that belong to a bucket are."""
    return folder / f"bucket-{bucket:05}" / f"{chunk:05}.docs"


def to_buckets(
    records: Iterable[Record],
    folder: Path,
    chunk: int,
    config: ShuffleConfig,
    buffer_bytes: int = 1 << 28,
) -> tuple[Bucketed, dict[Path, FileEntry]]:
    """Send the documents of a chunk to the buckets; return their files and what is in them.

    Files that an earlier attempt left are replaced.

    Args:
        records: In any order.
        folder: Of the buckets, the same for all chunks.
        chunk: Its number; each chunk has other documents.
        config: The same for all chunks.
        buffer_bytes: Memory for documents that are not written yet.

    Raises:
        InputError: a document is unfit: no EOD at its end or one inside, an id outside the
            vocabulary, an unknown domain.
    """
    buffers = _Buffers(folder, chunk, config)
    for record in records:
        buffers.add(record)
        if buffers.num_bytes > buffer_bytes:
            buffers.flush()
    buffers.flush()
    return Bucketed(buffers.kinds, buffers.documents, buffers.tokens), buffers.files()


class _Buffers:
    """Documents of one chunk, by bucket, until they are written."""

    def __init__(self, folder: Path, chunk: int, config: ShuffleConfig) -> None:
        self._folder, self._chunk, self._config = folder, chunk, config
        self._dtype = token_dtype(config.vocab_size)
        self._waiting: dict[int, list[tuple[bytes, int, NDArray[Any], str, int]]] = {}
        self._sizes: dict[int, int] = {}
        self._digests: dict[int, xxhash.xxh3_128] = {}
        self._kind_index: dict[Label, int] = {}
        self.tokens: dict[int, dict[str, int]] = {}
        self.num_bytes = 0
        self.documents = 0

    @property
    def kinds(self) -> list[Label]:
        return list(self._kind_index)

    def add(self, record: Record) -> None:
        domain = record.label.domain
        if domain not in self._config.weights:
            raise InputError.of(
                f"document {record.document_id} is of the domain {domain!r}",
                f"the mixture has {', '.join(self._config.weights)}",
                f"data.mixture with a weight of {domain}, or a source without it",
            )
        kind = self._kind_index.setdefault(record.label, len(self._kind_index))
        ids = np.asarray(record.ids)
        if not len(ids):
            raise self._unfit(record.document_id, "is empty")
        key = f"{record.document_id}\0{record.copy}".encode()
        digest = xxhash.xxh3_128_digest(key, seed=self._config.seed)
        bucket = int.from_bytes(digest[:8]) % self._config.num_buckets
        self._waiting.setdefault(bucket, []).append(
            (digest, kind, ids, record.document_id, record.number)
        )
        self.num_bytes += ids.nbytes + _OVERHEAD_BYTES
        self.documents += 1

    def flush(self) -> None:
        """Append what waits to the files of its buckets, a block each."""
        for bucket, documents in sorted(self._waiting.items()):
            documents.sort(key=itemgetter(0))
            digests, kinds, arrays, names, numbers = zip(*documents, strict=True)
            lengths = np.array([len(a) for a in arrays], dtype=np.int32)
            ids = self._checked(np.concatenate(arrays), lengths, names)
            # the first half of a digest is the high one
            halves = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2).T
            columns = (
                np.array([MAGIC, len(lengths), len(ids)], dtype=np.uint64),
                *halves.astype(np.uint64, order="C"),
                np.array(numbers, dtype=np.uint64),
                lengths,
                np.array(kinds, dtype=np.int32),
                ids,
                np.zeros(-ids.nbytes % 8, dtype=np.uint8),
            )
            self._append(bucket, [column.view(np.uint8) for column in columns])
            totals = self.tokens.setdefault(bucket, {})
            of_kind = np.bincount(kinds, weights=lengths)
            labels = self.kinds
            for kind in np.flatnonzero(of_kind).tolist():
                domain = labels[kind].domain
                totals[domain] = totals.get(domain, 0) + int(of_kind[kind])
        self._waiting.clear()
        self.num_bytes = 0

    def _append(self, bucket: int, columns: Sequence[NDArray[np.uint8]]) -> None:
        path = bucket_file(self._folder, bucket, self._chunk)
        new = bucket not in self._sizes
        if new:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._digests[bucket] = xxhash.xxh3_128()
            self._sizes[bucket] = 0
        with open(path, "wb" if new else "ab") as file:
            for column in columns:
                file.write(column)
                self._digests[bucket].update(column)
                self._sizes[bucket] += column.nbytes

    def files(self) -> dict[Path, FileEntry]:
        """Return the files that were written."""
        return {
            bucket_file(self._folder, bucket, self._chunk): {
                "bytes": self._sizes[bucket],
                "xxh3_128": digest.hexdigest(),
            }
            for bucket, digest in sorted(self._digests.items())
        }

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
            "data.build.tokenizer=train, or a tokenizer.json that ends a document with its EOD "
            "alone",
        )
