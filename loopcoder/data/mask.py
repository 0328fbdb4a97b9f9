"""Which tokens of a packed corpus are trained, for the loss of a run.

`<prefix>.mask` beside `<prefix>.bin`: one byte for each token, 1 where the token is trained as a
label, else 0; `<prefix>.mask.blocks` has the digests of its blocks, as `<prefix>.blocks` those of
the tokens (see blocks.py).

A packed corpus is made for one sequence length S. A shard is whole sequences of exactly S tokens,
each of whole conversations, then an empty document: its end alone. So sequence i is the tokens
[i S, i S + S], no conversation is cut, and the last label of a sequence begins a document, which is
never trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopcoder.data.blocks import BlockDigests, RangeFile
from loopcoder.data.indexed import BLOCKS, extent_of, lengths_of
from loopcoder.errors import InputError
from loopcoder.storage.files import sync

MASK = ".mask"
"""Suffix of the mask of a `.bin`'s tokens."""
MASK_BLOCKS = MASK + BLOCKS
"""Suffix of the digests of its blocks."""
_CHUNK = 1 << 22
"""Bytes that are checked at a time."""


class MaskWriter:
    """Appends to `<prefix>.mask`; `finish` adds `<prefix>.mask.blocks` and gives both names.

    Until `finish` the file carries the suffix .tmp.
    """

    def __init__(self, prefix: Path) -> None:
        self._path = prefix.with_name(prefix.name + MASK)
        self._tmp = self._path.with_name(f"{self._path.name}.tmp")
        self._digests = BlockDigests()
        self._file = open(self._tmp, "wb")  # noqa: SIM115 - closed by finish or close

    def append(self, trained: NDArray[np.bool_]) -> None:
        """Add tokens: whether each is trained. [tokens]"""
        content = trained.astype(np.uint8).tobytes()
        self._file.write(content)
        self._digests.update(content)

    def finish(self) -> list[Path]:
        """Sync the file to disk, rename it and write its digests; return both paths."""
        sync(self._file)
        self._file.close()
        self._tmp.replace(self._path)
        digests = self._path.with_name(self._path.name + BLOCKS)
        self._digests.write(digests)
        return [self._path, digests]

    def close(self) -> None:
        """Give up: close the file and leave what was written under its temporary name."""
        self._file.close()


class MaskFile:
    """Reads the mask of a shard."""

    def __init__(self, file: RangeFile, path: Path, fix: str):
        """
        Args:
            file: The mask, opened.
            path: What it is called.
            fix: What mends a damaged one.
        """
        self._file, self._path, self._fix = file, path, fix

    def of_labels(self, start: int, count: int) -> NDArray[np.bool_]:
        """Return which labels of the tokens [start, start + count) are trained. [count]

        Raises:
            InputError: the file is damaged.
            OSError: it cannot be read.
        """
        try:
            return _decoded(np.frombuffer(self._file.read(start + 1, count), dtype=np.uint8))
        except ValueError as error:
            raise InputError.of(
                f"{self._path} is damaged: {error}", "a token is trained, 1, or not, 0", self._fix
            ) from error


def read_mask(prefix: Path, index: int, *, most: int) -> NDArray[np.bool_]:
    """Return which of the first tokens of one document of a shard are trained. [at most `most`]

    Args:
        index: Of the document, from 0.

    Raises:
        ValueError: the index or the mask is damaged, or there is no such document.
        OSError: a file cannot be read.
    """
    start, length = extent_of(prefix, index)
    path, count = prefix.with_name(prefix.name + MASK), min(length, most)
    content = np.fromfile(path, dtype=np.uint8, count=count, offset=start)
    try:
        if len(content) < count:
            raise ValueError(f"it ends after {start + len(content):,} tokens")
        return _decoded(content)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def check_packing(prefix: Path, documents: int, tokens: int, seq_length: int) -> None:
    """Check that a shard with a sound index is packed as it has to be: documents end where
    sequences do, and their first tokens are not trained.

    Args:
        documents: Of the shard.
        tokens: Of the shard.
        seq_length: Tokens that it is packed for.

    Raises:
        ValueError: with the fact, if it is not.
        OSError: a file cannot be read.
    """
    name = prefix.name + MASK
    size = prefix.with_name(name).stat().st_size
    if size != tokens:
        raise ValueError(f"{name} has {size:,} bytes, {prefix.name} {tokens:,} tokens")
    done = borders = 0
    for lengths in lengths_of(prefix, documents):
        ends = done + np.cumsum(lengths, dtype=np.int64)
        borders += int(np.count_nonzero(ends % seq_length == 0))
        starts = ends - lengths
        for trained in _at(prefix.with_name(name), starts):
            if trained.any():
                raise ValueError(f"{name} trains the first token of a document")
        done = int(ends[-1])
    if (done - 1) % seq_length or borders != (done - 1) // seq_length:
        raise ValueError(f"{prefix.name} is not made of whole sequences of {seq_length} tokens")


def _decoded(content: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which tokens are trained, of the bytes of a mask. [tokens]

    Raises:
        ValueError: with the fact, if there is a byte that says neither.
    """
    if len(content) and (highest := int(content.max())) > 1:
        raise ValueError(f"it has {highest} for a token")
    return content.astype(np.bool_)


def _at(path: Path, places: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    """Yield the bytes of a file at ascending places, some at a time."""
    first, last = int(places[0]), int(places[-1]) + 1
    with open(path, "rb") as file:
        for start in range(first, last, _CHUNK):
            stop = min(start + _CHUNK, last)
            file.seek(start)
            content = np.fromfile(file, dtype=np.uint8, count=stop - start)
            low, high = np.searchsorted(places, [start, stop])
            yield content[places[low:high] - start]
