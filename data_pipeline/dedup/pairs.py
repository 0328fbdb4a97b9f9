"""Pairs of documents from sorted files of (hash, number), and their clusters by union-find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
Records = NDArray[np.void]

BLOCK = 1 << 20
"""Records or edges that are held at a time."""
_ROW_BITS = 32
"""A document's number is its chunk << 32 | its row."""
_ROUNDS = 32
"""Documents of a bucket against which its others are verified, one after the other."""


def rows_of(numbers: U64) -> NDArray[np.int64]:
    """Return the rows of documents within their chunks."""
    return (numbers & np.uint64((1 << _ROW_BITS) - 1)).astype(np.int64)


def chunks_of(numbers: U64) -> NDArray[np.int64]:
    """Return the chunks of documents."""
    return (numbers >> np.uint64(_ROW_BITS)).astype(np.int64)


def number_of(chunk: int, row: int) -> int:
    """Return the number of a document; a chunk has some millions of rows at most."""
    return (chunk << _ROW_BITS) + row


def numbers_of(chunks: NDArray[np.int64], rows: NDArray[np.int64]) -> U64:
    """Return the numbers of documents."""
    return (chunks.astype(np.uint64) << np.uint64(_ROW_BITS)) + rows.astype(np.uint64)


class SortedRecords:
    """A sorted file of records, read in ranges of hashes."""

    def __init__(self, path: Path, dtype: np.dtype[np.void]) -> None:
        self._path = path
        self._dtype = dtype
        self.count = path.stat().st_size // dtype.itemsize

    def find(self, hash_: int) -> int:
        """Return the index of the first record whose hash is not less than this one."""
        low, high = 0, self.count
        with open(self._path, "rb", buffering=0) as file:
            while low < high:
                middle = (low + high) // 2
                file.seek(middle * self._dtype.itemsize)
                if int.from_bytes(file.read(8), "little") < hash_:
                    low = middle + 1
                else:
                    high = middle
        return low

    def read(self, start: int, stop: int) -> Records:
        offset = start * self._dtype.itemsize
        return np.fromfile(self._path, self._dtype, count=stop - start, offset=offset)


class Sketches:
    """Tells whether the signatures of two documents agree well enough."""

    def __init__(self, paths: Sequence[Path], num_hashes: int, wanted: float) -> None:
        self._paths = paths
        self._width = num_hashes
        # agreements are counted, and 0.75 of 112 must not depend on a rounding of floats
        self._wanted = round(wanted * num_hashes, 6)

    def agree(self, first: U64, second: U64) -> NDArray[np.bool_]:
        out = np.empty(len(first), dtype=bool)
        for start in range(0, len(first), BLOCK // 16):
            piece = slice(start, start + BLOCK // 16)
            equal = self._get(first[piece]) == self._get(second[piece])
            out[piece] = equal.sum(axis=1) >= self._wanted
        return out

    def _get(self, numbers: U64) -> NDArray[np.uint8]:
        out = np.empty((len(numbers), self._width), dtype=np.uint8)
        of_chunk = chunks_of(numbers)
        for chunk in np.unique(of_chunk):
            here = of_chunk == chunk
            # mapped anew each time: pages once touched would count as this process's memory
            rows = np.memmap(self._paths[chunk], np.uint8, "r").reshape(-1, self._width)
            out[here] = rows[rows_of(numbers[here])]
        return out


def find_pairs(readers: Sequence[SortedRecords], sketches: Sketches | None) -> Iterator[U64]:
    """Yield pairs `[n, 2]` of documents with equal hashes, range of hashes after range."""
    todo = [(0, 1 << 64, [0] * len(readers), [reader.count for reader in readers])]
    while todo:
        low, high, starts, stops = todo.pop()
        total = sum(stops) - sum(starts)
        if total < 2:
            continue
        if total <= BLOCK:
            spans = zip(readers, starts, stops, strict=True)
            records = np.concatenate([r.read(a, b) for r, a, b in spans if b > a])
            yield from _link(records, sketches)
        elif high - low > 1:
            middle = (low + high) // 2
            between = [reader.find(middle) for reader in readers]
            todo += [(middle, high, between, stops), (low, middle, starts, between)]
        else:
            yield from _pairs_of_one_hash(readers, starts, stops, sketches)


def _pairs_of_one_hash(
    readers: Sequence[SortedRecords],
    starts: Sequence[int],
    stops: Sequence[int],
    sketches: Sketches | None,
) -> Iterator[U64]:
    """Pair the many documents of one hash with the first of them, piece after piece."""
    centres: Records | None = None
    for reader, start, stop in zip(readers, starts, stops, strict=True):
        for at in range(start, stop, BLOCK):
            records = reader.read(at, min(at + BLOCK, stop))
            if centres is not None:
                records = np.concatenate([centres, records])
            yield from _link(records, sketches)
            if "low" in (records.dtype.names or ()):
                centres = records[np.unique(records["low"], return_index=True)[1]]
            else:
                centres = records[:1]


def _link(records: Records, sketches: Sketches | None) -> Iterator[U64]:
    """Yield the pairs of records given in the order of their numbers within a hash.

    Every document of a bucket is paired with the first one. Those that do not agree with it are
    compared with the first of themselves, and so on.
    """
    keys = [name for name in records.dtype.names or () if name != "number"]
    records = records[np.lexsort([records["number"], *(records[key] for key in reversed(keys))])]
    new = np.ones(len(records), dtype=bool)
    new[1:] = np.any([records[key][1:] != records[key][:-1] for key in keys], axis=0)
    bucket = np.cumsum(new)
    numbers: U64 = records["number"]
    for _ in range(_ROUNDS):
        first = np.ones(len(bucket), dtype=bool)
        first[1:] = bucket[1:] != bucket[:-1]
        if first.all():
            return
        centre = numbers[np.flatnonzero(first)[np.cumsum(first) - 1]]
        rest = ~first
        agree = np.ones(int(rest.sum()), dtype=bool)
        if sketches is not None:
            agree = sketches.agree(centre[rest], numbers[rest])
        yield np.stack([centre[rest][agree], numbers[rest][agree]], axis=1)
        numbers, bucket = numbers[rest][~agree], bucket[rest][~agree]


def roots_of(parents: NDArray[np.int64], nodes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the roots of `nodes` and let their paths point there."""
    roots = parents[nodes]
    while True:
        above = parents[roots]
        if np.array_equal(above, roots):
            return roots
        # paths among the nodes halve with every turn
        parents[nodes] = roots = above


def join(parents: NDArray[np.int64], a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
    """Join the clusters of a[i] and b[i]; a root is the smallest of its cluster.

    Of several edges that would move one root at once the smallest target wins, and the others are
    tried again: a parent is never larger than its child, so no cycle arises.
    """
    while len(a):
        a, b = roots_of(parents, a), roots_of(parents, b)
        differ = a != b
        a, b = np.minimum(a, b)[differ], np.maximum(a, b)[differ]
        np.minimum.at(parents, b, a)
