"""Lock files: the kernel lets go of one when its holder ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_BUSY = (errno.EWOULDBLOCK, errno.EACCES)


@contextmanager
def hold(
    path: Path, busy: Callable[[str], None], *, shared: bool = False, needed: bool = True
) -> Iterator[None]:
    """Hold a lock file for the block.

    The file stays afterwards: removing it could remove one that another process has just locked.

    Args:
        path: The lock file, made where it is not there.
        busy: Called with the holder's process id if another process has it: raises, or returns to
            wait for it.
        shared: Together with others that share it; else alone.
        needed: A file system without locks is an error; else it is not guarded.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
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
        if not shared:
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield
