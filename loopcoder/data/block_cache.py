"""Blocks of the shards of a remote corpus, on a local disk that all processes of a node share.

A block is fetched whole, compared with its digest, written under a temporary name and renamed. The
folder never holds more than its limit: room is taken under a lock before anything is written, from
the blocks that were used longest ago. So a process may be killed at any moment, and what it left
goes as any other block does.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from loopcoder.data import blocks
from loopcoder.errors import InputError
from loopcoder.storage.digest import fingerprint
from loopcoder.storage.disk import is_disk_full
from loopcoder.storage.files import in_words
from loopcoder.storage.folders import make_folder
from loopcoder.storage.lock import hold
from loopcoder.storage.remote import WHILE_TRAINING, Store

_OPEN = 4
"""Blocks of a shard that are kept open: a batch can straddle two stretches, and each two blocks."""


class Block:
    """A verified block: an open file of the cache, which may lose its name meanwhile, or bytes."""

    def __init__(self, source: int | bytes):
        self._source = source

    def read_into(self, into: memoryview, start: int) -> None:
        """Fill `into` with the bytes from `start` of the block on."""
        if isinstance(self._source, bytes):
            into[:] = self._source[start : start + len(into)]
            return
        done = 0
        while done < len(into):
            count = os.preadv(self._source, [into[done:]], start + done)
            if count == 0:
                raise OSError("a file of data.cache.dir was cut off while it was read")
            done += count

    def __del__(self) -> None:
        if isinstance(self._source, int):
            os.close(self._source)


class BlockCache:
    """The blocks of a store's files."""

    def __init__(
        self,
        folder: Path,
        limit: int,
        store: Store,
        report: Callable[[str], None] | None = None,
    ):
        """
        Args:
            folder: Where they are kept; those of other corpora too.
            limit: Bytes that all files there may have together.
            report: Receives what is not as it was asked for; None: to stderr.

        Raises:
            InputError: nothing can be written there.
        """
        make_folder(folder, "data.cache.dir")
        self._folder, self._limit, self._store = folder, limit, store
        self._report = report or (lambda text: print(text, file=sys.stderr, flush=True))

    def block(
        self,
        name: str,
        start: int,
        size: int,
        digest: bytes | None,
        pauses: Sequence[float] = WHILE_TRAINING,
    ) -> Block:
        """Return a block of a file, fetched if it is not there.

        Args:
            name: Of the file, below the store's URL.
            start: Byte of the file that it begins with.
            size: Bytes of the block.
            digest: Its xxh3-128; None: it is not compared.
            pauses: Seconds before each further try to read from the store.

        Raises:
            InputError: it is damaged in the store.
            LoopcoderError: the store cannot be read.
        """
        told = None if digest is None else digest.hex()
        path = self._folder / fingerprint(self._store.url, name, start, size, told)
        if (found := _verified(path, size, digest)) is not None:
            return found
        try:
            with hold(path.with_suffix(".lock"), lambda _: None, needed=False):
                try:  # another process may have fetched it meanwhile
                    if (found := _verified(path, size, digest)) is not None:
                        return found
                    pieces = self._fetch(name, start, size, digest, pauses)
                    return self._kept(path, pieces, size)
                finally:
                    path.with_suffix(".lock").unlink(missing_ok=True)
        except OSError as error:
            if not is_disk_full(error):
                raise
            # not even a lock has room
            return Block(b"".join(self._fetch(name, start, size, digest, pauses)))

    def _fetch(
        self, name: str, start: int, size: int, digest: bytes | None, pauses: Sequence[float]
    ) -> list[bytes]:
        for _ in range(2):  # it may have been damaged on its way
            pieces = self._store.pieces(name, start, size, pauses)
            if digest is None or _digest(pieces) == digest:
                return pieces
        raise InputError.of(
            f"{self._store.url}/{name} is damaged in its bytes {start:,} to {start + size - 1:,}",
            "they have another hash than when they were written",
            "upload it again from the corpus that was built, or build that again",
        )

    def _kept(self, path: Path, pieces: Sequence[bytes], size: int) -> Block:
        """Write a block that was fetched; one that there is no room for stays in memory."""
        temporary = path.with_suffix(".tmp")
        for _ in range(2):
            try:
                if not self._make_room(temporary, size):
                    break
                with open(temporary, "r+b") as file:
                    file.writelines(pieces)
                temporary.replace(path)
                return Block(os.open(path, os.O_RDONLY))
            except FileNotFoundError:  # others needed its room at once
                break
            except OSError as error:
                temporary.unlink(missing_ok=True)
                if not is_disk_full(error):
                    raise
                self._shrink(size, error)
        return Block(b"".join(pieces))

    def _make_room(self, temporary: Path, size: int) -> bool:
        """Take room for a block under its temporary name; False: there is not so much in all."""
        if size > self._limit:
            return False
        with hold(self._folder / ".lock", lambda _: None, needed=False):
            temporary.unlink(missing_ok=True)  # of a process that was killed
            self._remove_oldest(self._limit - size)
            with open(temporary, "wb") as file:
                file.truncate(size)
        return True

    def _remove_oldest(self, limit: int) -> int:
        """Remove what was used longest ago until all files have at most so many bytes; return how
        many they have."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(OSError):  # another process renamed it
                    if not entry.name.endswith(".lock"):
                        stat = entry.stat()
                        found.append((stat.st_mtime_ns, stat.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= limit:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
        return total

    def _shrink(self, size: int, error: OSError) -> None:
        """Keep less from here on: the disk has no room for what was asked for."""
        with hold(self._folder / ".lock", lambda _: None, needed=False):
            there = self._remove_oldest(self._limit)
            self._limit = self._remove_oldest(max(there - 2 * size, 0))
        self._report(
            f"data: no room in data.cache.dir={self._folder}: {error.strerror}; from here on it "
            f"keeps {in_words(self._limit)}, and blocks that do not fit are read from "
            f"{self._store.url} each time"
        )


class CachedFile:
    """Reads ranges of a file of a store through the cache, as CheckedFile does of a local one."""

    def __init__(
        self,
        cache: BlockCache,
        name: str,
        size: int,
        digests: NDArray[np.uint8] | None,
        _fix: str = "",
        block_bytes: int | None = None,
    ):
        """
        Args:
            name: Of the file, below the store's URL.
            size: Bytes of the file.
            digests: Of its blocks, [blocks, 16]; None: nothing is compared.
            block_bytes: Of a block; None: 64 MB.
        """
        self._cache, self._name, self._size, self._digests = cache, name, size, digests
        self._block_bytes = block_bytes or blocks.BLOCK_BYTES
        self._block = lru_cache(maxsize=_OPEN)(self.fetch)

    def read(self, start: int, size: int) -> bytearray:
        """Return the bytes [start, start + size).

        Raises:
            LoopcoderError: a block is damaged or cannot be read.
        """
        content = bytearray(size)
        view, at, stop = memoryview(content), start, start + size
        while at < stop:
            index, offset = divmod(at, self._block_bytes)
            count = min(stop - at, self._block_bytes - offset)
            self._block(index).read_into(view[at - start : at - start + count], offset)
            at += count
        return content

    def fetch(self, index: int, pauses: Sequence[float] = WHILE_TRAINING) -> Block:
        """Return a block, which is then in the cache."""
        start = index * self._block_bytes
        size = min(self._block_bytes, self._size - start)
        digest = None if self._digests is None else self._digests[index].tobytes()
        return self._cache.block(self._name, start, size, digest, pauses)


class Ahead:
    """Fetches blocks in a thread before they are read. What goes wrong there is told where they are
    read: that tries again."""

    def __init__(self, fetch: Callable[[int, int], object]):
        """
        Args:
            fetch: Takes a shard and a block of it.
        """
        self._fetch = fetch
        self._lock = threading.Lock()
        self._wanted: list[tuple[int, int]] = []
        self._works = False

    def want(self, coming: Iterable[tuple[int, int]]) -> None:
        """Fetch these next, in their order, and no longer what was wanted before."""
        with self._lock:
            self._wanted = list(coming)
            if self._works or not self._wanted:
                return
            self._works = True
        threading.Thread(target=self._run, name="loopcoder-blocks", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._works = False
                    return
                coming = self._wanted.pop(0)
            with suppress(Exception):
                self._fetch(*coming)


def _verified(path: Path, size: int, digest: bytes | None) -> Block | None:
    """Return a block of the cache; None: it is not there, or is damaged, which removes it."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    block = Block(file)
    if os.fstat(file).st_size == size and (digest is None or _file_digest(file, size) == digest):
        with suppress(OSError):
            os.utime(path)  # used last
        return block
    with suppress(OSError):
        path.unlink()
    return None


def _file_digest(file: int, size: int) -> bytes:
    digest = xxhash.xxh3_128()
    for start in range(0, size, blocks.PIECE):
        digest.update(os.pread(file, min(blocks.PIECE, size - start), start))
    return digest.digest()


def _digest(pieces: Iterable[bytes]) -> bytes:
    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()
