"""Megatron `.bin/.idx` files by numpy alone, identical to those of megatron-core's builder.

An entry of the index is one document. `.bin`: token ids one after the other. `.idx`: magic,
version, dtype code, counts, then arrays of lengths (int32), byte offsets (int64) and document
boundaries (int64).
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopcoder.data.blocks import BlockDigests
from loopcoder.storage.files import sync

BLOCKS = ".blocks"
"""Suffix of the digests of a `.bin`'s blocks (see blocks.py)."""
_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPE_CODES: dict[type, int] = {np.int32: 4, np.uint16: 8}
_CHUNK = 1 << 20
"""Entries of the index that are computed and written at a time."""
_CHUNK_IDS = 1 << 22
"""Token ids that are read at a time."""


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.int32]:
    """Return the type of token ids on disk: megatron-core's rule, uint16 below 65,500 ids."""
    return np.uint16 if vocab_size < 65500 else np.int32


def check_there(prefix: str) -> None:
    """Raise OSError unless both files of a dataset are there: megatron-core asserts it, and its
    object that was never made prints a traceback of its own."""
    for suffix in (".idx", ".bin"):
        Path(prefix + suffix).stat()


class IndexedWriter:
    """Appends documents to `<prefix>.bin`; `finish` adds `<prefix>.idx` and `<prefix>.blocks`, the
    digests of its blocks, and gives all their names.

    Memory: 4 bytes per document. Until `finish` the files carry the suffix .tmp.
    """

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        self._prefix = prefix
        self._dtype = token_dtype(vocab_size)
        self._lengths = array("i")
        self._digests = BlockDigests()
        self._bin = open(self._tmp(".bin"), "wb")  # noqa: SIM115 - closed by finish or close

    def _tmp(self, suffix: str) -> Path:
        return self._prefix.with_name(f"{self._prefix.name}{suffix}.tmp")

    def append(self, token_ids: NDArray[np.integer], lengths: NDArray[np.integer]) -> None:
        """Add documents.

        Args:
            token_ids: The ids of all of them, one after the other.
            lengths: Tokens of each, none of them 0; their sum is len(token_ids).
        """
        if int(lengths.sum()) != len(token_ids) or (len(lengths) and int(lengths.min()) < 1):
            raise ValueError(
                f"{len(token_ids)} tokens do not make up documents of {lengths} tokens"
            )
        content = token_ids.astype(self._dtype).tobytes()
        self._bin.write(content)
        self._digests.update(content)
        self._lengths.frombytes(lengths.astype(np.int32).tobytes())

    def finish(self) -> list[Path]:
        """Write index and digests, sync the files to disk and rename them; return their paths."""
        with open(self._tmp(".idx"), "wb") as index:
            lengths = np.frombuffer(self._lengths, dtype=np.int32)
            code = _DTYPE_CODES[self._dtype]
            index.write(_HEADER.pack(_MAGIC, 1, code, len(lengths), len(lengths) + 1))
            index.write(lengths.tobytes())
            offset = 0
            for start in range(0, len(lengths), _CHUNK):
                sizes = lengths[start : start + _CHUNK].astype(np.int64) * self._dtype().itemsize
                ends = np.cumsum(sizes) + offset
                index.write((ends - sizes).tobytes())
                offset = int(ends[-1])
            for start in range(0, len(lengths) + 1, _CHUNK):
                stop = min(start + _CHUNK, len(lengths) + 1)
                index.write(np.arange(start, stop, dtype=np.int64).tobytes())
            sync(index)
        sync(self._bin)
        self._bin.close()
        paths = []
        for suffix in (".bin", ".idx"):
            path = self._prefix.with_name(self._prefix.name + suffix)
            self._tmp(suffix).replace(path)
            paths.append(path)
        paths.append(self._prefix.with_name(self._prefix.name + BLOCKS))
        self._digests.write(paths[-1])
        return paths

    def close(self) -> None:
        """Give up: close the file and leave what was written under its temporary name."""
        self._bin.close()


def check_pair(prefix: Path, *, vocab_size: int, eod_id: int) -> tuple[int, int]:
    """Check that `<prefix>.idx` describes `<prefix>.bin`; return (documents, tokens).

    Reads both; of the `.bin`, the last token of every document is compared with EOD.

    Args:
        prefix: Path of both without suffix.
        vocab_size: Size of the tokenizer, which fixes the type of the ids.
        eod_id: Id that every document must end with.

    Raises:
        ValueError: with the fact, if they disagree.
        OSError: one of them cannot be read.
    """
    index_path = prefix.with_name(prefix.name + ".idx")
    bin_path = prefix.with_name(prefix.name + ".bin")
    dtype = token_dtype(vocab_size)
    raw = np.memmap(index_path, dtype=np.uint8, mode="r")
    if len(raw) < _HEADER.size:
        raise ValueError(f"{index_path.name} has {len(raw)} bytes, less than its header")
    magic, version, code, count, boundaries = _HEADER.unpack(raw[: _HEADER.size].tobytes())
    if magic != _MAGIC or version != 1:
        raise ValueError(f"{index_path.name} does not begin like a Megatron index")
    if code != _DTYPE_CODES[dtype]:
        raise ValueError(f"{index_path.name} has dtype code {code}, not {_DTYPE_CODES[dtype]}")
    if boundaries != count + 1 or len(raw) != _HEADER.size + 12 * count + 8 * boundaries:
        raise ValueError(
            f"{index_path.name} has {len(raw)} bytes and names {count} documents "
            f"with {boundaries} boundaries"
        )
    body = raw[_HEADER.size :]
    lengths = body[: 4 * count].view(np.int32).astype(np.int64)
    ends = np.cumsum(lengths)
    if not np.array_equal(
        body[4 * count : 12 * count].view(np.int64), (ends - lengths) * dtype().itemsize
    ):
        raise ValueError(f"{index_path.name}: the byte offsets are not the sums of the lengths")
    if not np.array_equal(body[12 * count :].view(np.int64), np.arange(count + 1)):
        raise ValueError(f"{index_path.name}: an entry is not exactly one document")
    tokens = int(ends[-1]) if count else 0
    size = bin_path.stat().st_size
    if not count or int(lengths.min()) < 1 or size != tokens * dtype().itemsize:
        raise ValueError(
            f"{bin_path.name} has {size} bytes, but {index_path.name} names {count} documents with "
            f"{tokens} tokens of {dtype().itemsize} bytes"
        )
    first = 0
    # read, not mapped: pages once touched would count as this process's memory
    for ids in chunks_of(bin_path, dtype):
        here = ends[np.searchsorted(ends, first, "right") :]
        here = here[: np.searchsorted(here, first + len(ids), "right")]
        if not (ids[here - first - 1] == eod_id).all():
            raise ValueError(f"{bin_path.name} has documents that do not end with token {eod_id}")
        first += len(ids)
    return int(count), tokens


def lengths_of(prefix: Path, documents: int) -> Iterator[NDArray[np.int32]]:
    """Yield the lengths of the documents of a sound index, in tokens, some at a time."""
    for start in range(0, documents, _CHUNK):
        count = min(_CHUNK, documents - start)
        path = prefix.with_name(prefix.name + ".idx")
        yield np.fromfile(path, np.int32, count, offset=_HEADER.size + 4 * start)


def read_document(prefix: Path, index: int, *, vocab_size: int, most: int) -> NDArray[Any]:
    """Return the first ids of one document of a `.bin/.idx`, [at most `most`], reading no others.

    Args:
        prefix: Path of both without suffix.
        index: Of the document, from 0.
        vocab_size: Size of the tokenizer, which fixes the type of the ids.
        most: Ids to read at most.

    Raises:
        ValueError: the index is damaged or has no such document.
        OSError: one of them cannot be read.
    """
    dtype = token_dtype(vocab_size)
    start, length = extent_of(prefix, index)
    path = prefix.with_name(prefix.name + ".bin")
    ids: NDArray[Any] = np.fromfile(path, dtype, min(length, most), offset=start * dtype().itemsize)
    return ids


def extent_of(prefix: Path, index: int) -> tuple[int, int]:
    """Return the first token of one document of a `.bin/.idx`, from 0, and its length in tokens.

    Raises:
        ValueError: the index is damaged or has no such document.
        OSError: it cannot be read.
    """
    with open(prefix.with_name(prefix.name + ".idx"), "rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise ValueError(f"{prefix.name}.idx does not begin like a Megatron index")
        code, count = _HEADER.unpack(header)[2:4]
        if not 0 <= index < count:
            raise ValueError(f"{prefix.name}.idx has {count} documents, none is {index}")
        file.seek(_HEADER.size + 4 * index)
        length = int(np.fromfile(file, np.int32, 1)[0])
        file.seek(_HEADER.size + 4 * count + 8 * index)
        offset = int(np.fromfile(file, np.int64, 1)[0])
    sizes = {code: dtype().itemsize for dtype, code in _DTYPE_CODES.items()}
    if code not in sizes:
        raise ValueError(f"{prefix.name}.idx has the dtype code {code}")
    return offset // sizes[code], length


def chunks_of(
    bin_path: Path, dtype: type[np.generic], limit: int | None = None
) -> Iterator[NDArray[Any]]:
    """Yield the ids of a `.bin`, or its first `limit`, some MB at a time."""
    left = sys.maxsize if limit is None else limit
    with open(bin_path, "rb") as file:
        while len(ids := np.fromfile(file, dtype=dtype, count=min(left, _CHUNK_IDS))):
            yield ids
            left -= len(ids)
