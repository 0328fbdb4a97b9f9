"""One bucket, read in the order of its documents' hashes; its files are those of `buckets.py`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.shuffle.buckets import DOCUMENT_BYTES, HEADER_BYTES, MAGIC, ShuffleConfig
from loopcoder.data.indexed import token_dtype
from loopcoder.data.labels import Label
from loopcoder.errors import InputError, Problem, counted
from loopcoder.storage.files import FileEntry

_CHUNK_TOKENS = 1 << 22
"""Gathered at a time."""


class BucketFile(NamedTuple):
    """Documents of one bucket from one chunk."""

    path: Path
    entry: FileEntry
    kinds: list[int]
    """Number in the corpus of each kind that is written in it."""

    @property
    def chunk(self) -> int:
        """Whose documents it holds."""
        return int(self.path.stem)


class Losses(NamedTuple):
    """What there was of a domain in a bucket, and what no shard takes of it."""

    documents_in: int
    tokens_in: int
    documents_dropped: int
    tokens_dropped: int


class Bucket:
    """The documents of one bucket in the order of their hashes.

    Read whole, after a comparison with the hashes of the files; or, to take a few documents from
    the end of another task's bucket, mapped.
    """

    def __init__(
        self,
        number: int,
        files: Sequence[BucketFile],
        kinds: Sequence[Label],
        config: ShuffleConfig,
        *,
        work: Path,
        whole: bool,
    ) -> None:
        """Open a bucket.

        Args:
            number: Its number.
            files: Of all chunks.
            kinds: The label of each kind in the corpus.
            config: The same as for `to_buckets`.
            work: The work folder, for errors.
            whole: Read it; else it is mapped and only the sizes of the files are compared.

        Raises:
            InputError: a file was changed, or a document is there twice.
        """
        self.number, self.kinds = number, kinds
        self._blocks: list[NDArray[Any]] = []
        self._chunk_of_block: list[int] = []
        columns = self._load(files, token_dtype(config.vocab_size), work, whole)
        high, low, numbers, lengths, block_kinds, block, offsets = columns
        order = np.lexsort((low, high))
        high, low = high[order], low[order]
        twice = np.flatnonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1]))
        if len(twice):
            value = f"{int(high[twice[0]]):016x}{int(low[twice[0]]):016x}"
            raise InputError.of(
                f"bucket {number} has {counted(len(twice), 'document')} twice, "
                f"such as that of hash {value}",
                "a document's id and copy decide its place and must be unique in the corpus",
                f"delete {work} and start the same command again; if it happens again, it is a "
                "bug: report it with this message",
            )
        self._lengths, self._kinds = lengths[order], block_kinds[order]
        self._number, self._offsets = block[order], offsets[order]
        self._in_chunk = numbers[order]

    def _load(
        self, files: Sequence[BucketFile], dtype: type[np.generic], work: Path, whole: bool
    ) -> list[NDArray[Any]]:
        """Fill in the blocks; return the columns of all documents."""
        columns: list[tuple[NDArray[Any], ...]] = []
        problems = []
        for file in files:
            try:
                for high, low, numbers, sizes, kinds, ids in _blocks(file, dtype, whole=whole):
                    lengths = sizes.astype(np.int64)
                    offsets = np.cumsum(lengths) - lengths
                    of_corpus = np.array(file.kinds, dtype=np.int32)[kinds]
                    block = np.full(len(lengths), len(self._blocks), dtype=np.int32)
                    columns.append((high, low, numbers, lengths, of_corpus, block, offsets))
                    self._blocks.append(ids)
                    self._chunk_of_block.append(file.chunk)
            except (OSError, ValueError) as e:
                problems.append(
                    Problem(
                        f"cannot use {file.path}: {e}",
                        "it was changed after the task that wrote it was done",
                        f"delete {work} and start the same command again",
                    )
                )
        if problems:
            raise InputError(problems)
        if not columns:
            hashes, rest = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
            return [hashes, hashes, hashes, rest, rest, rest, rest]
        return [np.concatenate(column) for column in zip(*columns, strict=True)]

    def _of_domain(self, domain: str) -> NDArray[np.int64]:
        mine = [i for i, kind in enumerate(self.kinds) if kind.domain == domain]
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
            here = slice(low, high)
            ids = np.concatenate(
                [
                    self._blocks[number][offset : offset + length]
                    for number, offset, length in zip(
                        self._number[mine[here]].tolist(),
                        offsets[here].tolist(),
                        lengths[here].tolist(),
                        strict=True,
                    )
                ]
            )
            yield ids, lengths[here], self._kinds[mine[here]]

    def tokens(self, domain: str) -> int:
        """Return the tokens of a domain."""
        return int(self._lengths[self._of_domain(domain)].sum())

    def losses(self, domain: str, used: int) -> Losses:
        """Return what there was of a domain, and what of it lies behind its first `used` tokens."""
        mine = self._of_domain(domain)
        lengths = self._lengths[mine]
        begins = np.cumsum(lengths) - lengths
        dropped = begins >= used
        total = int(lengths.sum())
        return Losses(len(mine), total, int(dropped.sum()), total - used)

    def left_over(self, domain: str, used: int) -> list[tuple[int, int]]:
        """Return (chunk, number in it) of the documents that `losses` counts as dropped."""
        mine = self._of_domain(domain)
        lengths = self._lengths[mine]
        lost = mine[np.cumsum(lengths) - lengths >= used]
        chunks = np.array(self._chunk_of_block, dtype=np.int64)[self._number[lost]]
        return list(zip(chunks.tolist(), self._in_chunk[lost].tolist(), strict=True))


def _blocks(
    file: BucketFile, dtype: type[np.generic], *, whole: bool
) -> Iterator[tuple[NDArray[Any], ...]]:
    """Yield (high, low, numbers, lengths, kinds, ids) of each block of a file."""
    path, entry = file.path, file.entry
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise ValueError(f"it has {size:,} bytes, {entry['bytes']:,} were written")
    raw: NDArray[np.uint8]
    raw = np.fromfile(path, dtype=np.uint8) if whole else np.memmap(path, np.uint8, mode="r")
    if whole and xxhash.xxh3_128_hexdigest(raw) != entry["xxh3_128"]:
        raise ValueError("it has other content than was written")
    at = 0
    while at < size:
        magic, count, tokens = raw[at : at + HEADER_BYTES].view(np.uint64).tolist()
        if magic != MAGIC:
            raise ValueError(f"no block begins at byte {at:,}")
        at += HEADER_BYTES
        high = raw[at : at + 8 * count].view(np.uint64)
        low = raw[at + 8 * count : at + 16 * count].view(np.uint64)
        numbers = raw[at + 16 * count : at + 24 * count].view(np.uint64)
        lengths = raw[at + 24 * count : at + 28 * count].view(np.int32)
        kinds = raw[at + 28 * count : at + 32 * count].view(np.int32)
        at += DOCUMENT_BYTES * count
        end = at + tokens * dtype().itemsize
        yield high, low, numbers, lengths, kinds, raw[at:end].view(dtype)
        at = end + -end % 8
