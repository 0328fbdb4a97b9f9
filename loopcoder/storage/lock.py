"""Lock files: the kernel lets go of one when its holder ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_BUSY = (errno.EWOULDBLOCK, errno.EACCES)


@contextmanager
def hold(
    path: Path, busy: Callable[[str], None], *, shared: bool = False, needed: bool = True
) -> Iterator[None]:
    """Hold a lock file for the block.

    The file stays afterwards. Who removes it must hold it: others that wait for it then take the
    file that has its name.

    Args:
        path: The lock file, made where it is not there.
        busy: Called with the holder's process id if another process has it: raises, or returns to
            wait for it.
        shared: Together with others that share it; else alone.
        needed: A file system without locks is an error; else it is not guarded.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        with open(path, "a+", encoding="ascii", errors="replace") as file:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _BUSY:
                    file.seek(0)
                    busy(file.read(80).strip())
                    fcntl.flock(file, kind)
                elif needed:
                    raise
            if _was_removed(file, path):
                continue
            if not shared:
                file.truncate(0)
                file.write(f"{os.getpid()}\n")
                file.flush()
            yield
            return


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Share the lock of a file that is only read, for the block; it stays as it is.

    It waits for a process that has the lock alone. A file system without locks is not guarded.

    Raises:
        OSError: the file cannot be opened for reading.
    """
    with open(path, "rb") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def without_readers(path: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a file that others share while they read it, alone and without waiting.

    A file system without locks is not guarded.

    Args:
        path: The file, which stays as it is.
        busy: Called if another process has the lock; raises.

    Raises:
        OSError: the file cannot be opened.
    """
    # NFS locks a file alone for those only who may write to it
    with open(path, "r+b" if os.access(path, os.W_OK) else "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                busy()
        yield


def is_held(path: Path, *, also_shared: bool = False) -> bool:
    """Say whether a process holds a lock file; it makes no file and waits for nobody.

    To ask is to share the lock for some microseconds, so ask where a person wants to know.

    Args:
        also_shared: Count those that share it, not only one that has it alone.
    """
    if not path.is_file():  # to open a pipe is to wait for whoever writes to it
        return False
    try:
        file = open(path, "rb")  # noqa: SIM115 - the block below closes it
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if also_shared else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in _BUSY
    return False


def _was_removed(file: IO[str], path: Path) -> bool:
    """Say whether an open file has lost its name."""
    try:
        return not os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return True
