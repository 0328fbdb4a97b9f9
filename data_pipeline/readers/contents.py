"""The bytes of a file that was listed, as it was then."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from data_pipeline.readers.compressed import decompressed
from data_pipeline.readers.listing import ListedFile
from data_pipeline.readers.packed import PACKERS
from data_pipeline.readers.storage import File
from data_pipeline.schema import MAX_DOCUMENT_BYTES, Tally


def check_unchanged(listed: ListedFile) -> None:
    """Raise OSError (ESTALE) unless a file is as it was when it was listed."""
    if change := change_of(listed):
        raise OSError(errno.ESTALE, change)


def change_of(listed: ListedFile) -> str | None:
    """Return how a local file differs from what it was when it was listed, None: it does not.

    Its inode is of no account: some file systems in user space make new ones up. What a store says
    of a file is compared when it is opened.
    """
    return _change(str(listed.file), listed) if isinstance(listed.file, Path) else None


def _change(path: str, listed: ListedFile) -> str | None:
    info = os.stat(path)  # noqa: PTH116 - in half the time
    if not stat.S_ISREG(info.st_mode):
        return "it is no file any more"
    if (info.st_size, info.st_mtime_ns) != (listed.size, listed.version):
        return f"it had {listed.size:,} bytes and has {info.st_size:,}"
    return None


def content_of(listed: ListedFile, tally: Tally) -> bytes | None:
    """Return the bytes of a file, unpacked; None: there are too many."""
    path = listed.file
    is_local = isinstance(path, Path)
    where = str(path) if is_local else path.name  # the name of a Path is made anew each time
    if where.lower().endswith(PACKERS):
        return _unpacked(path, tally)
    if listed.size > MAX_DOCUMENT_BYTES:
        return None
    if not is_local:
        return path.read_bytes()
    # of /proc, sizes say nothing
    content = _read(where, listed.size or MAX_DOCUMENT_BYTES + 1)
    if change := _change(where, listed):
        raise OSError(errno.ESTALE, change)
    return content if len(content) <= MAX_DOCUMENT_BYTES else None


def _read(path: str, size: int) -> bytes:
    """Return the bytes of a local file, of which there should be `size`; a file object would take
    as long as the reading of some kB."""
    # one that has become a pipe meanwhile is opened without waiting for who writes into it
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        content = os.read(descriptor, size + 1)
        while len(content) < size and (piece := os.read(descriptor, size - len(content))):
            content += piece
    except BlockingIOError:  # a pipe
        content = b""
    finally:
        os.close(descriptor)
    return content


def _unpacked(path: File, tally: Tally) -> bytes | None:
    pieces: list[bytes] = []
    total = 0
    for piece in decompressed(path, tally):
        total += len(piece)
        if total > MAX_DOCUMENT_BYTES:
            return None
        pieces.append(piece)
    return b"".join(pieces)
