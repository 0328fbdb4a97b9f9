"""Digests of the 64 MB blocks of a file, and reading that compares a block before it is used.

`<prefix>.blocks` beside `<prefix>.bin`: the xxh3-128 of each block, 16 bytes each, in their order.
A shard of 32 GB has 8 kB of them.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from loopcoder.errors import InputError
from loopcoder.storage.files import write_bytes

BLOCK_BYTES = 1 << 26
_DIGEST_BYTES = 16
PIECE = 1 << 22
"""Bytes that are read and hashed at a time."""
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EREMOTEIO, errno.ENOLCK}
"""Errors of a network file system or a disk that may be over a moment later."""
_PAUSES = (0.5, 2.0, 8.0)
"""Seconds before each further try."""


class BlockDigests:
    """Collects the digests of a file while it is written."""

    def __init__(self) -> None:
        self._done: list[bytes] = []
        self._digest = xxhash.xxh3_128()
        self._filled = 0

    def update(self, content: bytes) -> None:
        """Add what was appended to the file."""
        view = memoryview(content)
        while view:
            part = view[: BLOCK_BYTES - self._filled]
            self._digest.update(part)
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == BLOCK_BYTES:
                self._end_block()

    def write(self, path: Path) -> None:
        """Write the digests of all blocks; the last one may be shorter."""
        if self._filled:
            self._end_block()
        write_bytes(path, b"".join(self._done))

    def _end_block(self) -> None:
        self._done.append(self._digest.digest())
        self._digest.reset()
        self._filled = 0


def read_digests(path: Path, size: int) -> NDArray[np.uint8]:
    """Return the digests of a file of `size` bytes. [blocks, 16]

    Raises:
        ValueError: there are not as many as the file has blocks.
        OSError: they cannot be read.
    """
    digests = np.fromfile(path, dtype=np.uint8)
    blocks = -(-size // BLOCK_BYTES)
    if len(digests) != blocks * _DIGEST_BYTES:
        raise ValueError(f"{path} has {len(digests)} bytes, {blocks * _DIGEST_BYTES} are needed")
    return digests.reshape(blocks, _DIGEST_BYTES)


def digests_of(path: Path, size: int, fix: str) -> NDArray[np.uint8]:
    """Return the digests of a file of `size` bytes, see `read_digests`.

    Raises:
        InputError: there are not as many as the file has blocks; `fix` is what mends it.
        OSError: they cannot be read.
    """
    try:
        return read_digests(path, size)
    except ValueError as error:
        why = "it was cut off or changed after it was built"
        raise InputError.of(str(error), why, fix) from error


class RangeFile(Protocol):
    """A file whose ranges are read; what has a digest is compared with it before."""

    def read(self, start: int, size: int) -> bytearray:
        """Return the bytes [start, start + size)."""


OpenRange = Callable[..., RangeFile]
"""Opens a file with the arguments of `CheckedFile`."""


class CheckedFile:
    """Reads ranges of a file; a block is compared with its digest before anything of it is given.

    Reading goes through the page cache, not a mapping: an error of the disk is an exception and not
    a signal, and what was read does not count as memory of this process. Errors that may pass are
    tried again.
    """

    def __init__(
        self,
        path: Path,
        size: int,
        digests: NDArray[np.uint8] | None,
        fix: str,
        block_bytes: int | None = None,
    ):
        """
        Args:
            size: Bytes of the file.
            digests: Of its blocks, [blocks, 16]; None: nothing is compared.
            fix: What mends a damaged file.
            block_bytes: Of a block; None: 64 MB.

        Raises:
            OSError: the file cannot be opened.
        """
        self._file = -1
        self._path, self._size, self._digests, self._fix = path, size, digests, fix
        self._block_bytes = block_bytes or BLOCK_BYTES
        self._checked = np.zeros(0 if digests is None else len(digests), dtype=bool)
        self._file = os.open(path, os.O_RDONLY)

    def read(self, start: int, size: int) -> bytearray:
        """Return the bytes [start, start + size).

        Raises:
            InputError: a block is damaged, or the file is shorter.
            OSError: it cannot be read, however often it is tried.
        """
        if self._digests is not None:
            first, stop = start // self._block_bytes, -(-(start + size) // self._block_bytes)
            for block in range(first, stop):
                if not self._checked[block]:
                    self._check(block)
        content = bytearray(size)
        self._fill(memoryview(content), start)
        return content

    def close(self) -> None:
        """Close the file; it cannot be read any more."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def __del__(self) -> None:
        self.close()

    def _check(self, block: int) -> None:
        assert self._digests is not None
        start = block * self._block_bytes
        stop = min(start + self._block_bytes, self._size)
        digest, piece = xxhash.xxh3_128(), memoryview(bytearray(PIECE))
        for at in range(start, stop, PIECE):
            part = piece[: min(PIECE, stop - at)]
            self._fill(part, at)
            digest.update(part)
        if digest.digest() != self._digests[block].tobytes():
            raise InputError.of(
                f"{self._path} is damaged in its bytes {start:,} to {stop - 1:,}",
                "they have another hash than when they were written",
                self._fix,
            )
        self._checked[block] = True

    def _fill(self, into: memoryview, start: int) -> None:
        """Read so many bytes from `start` on, with further tries where an error may pass."""
        for pause in (*_PAUSES, None):
            try:
                self._fill_once(into, start)
                return
            except OSError as error:
                if pause is None or error.errno not in _PASSING:
                    raise
                time.sleep(pause)
                os.close(self._file)
                self._file = -1
                self._file = os.open(self._path, os.O_RDONLY)

    def _fill_once(self, into: memoryview, start: int) -> None:
        done = 0
        while done < len(into):
            count = os.preadv(self._file, [into[done:]], start + done)
            if count == 0:
                there = os.fstat(self._file).st_size
                raise InputError.of(
                    f"{self._path} ends after {there:,} of {self._size:,} bytes",
                    "it was cut off after the run had opened it",
                    self._fix,
                )
            done += count
