"""Full disks."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No space, no quota, or a file larger than the file system allows."""


def is_disk_full(error: BaseException) -> bool:
    """Say whether an error is that of a full disk."""
    return isinstance(error, OSError) and error.errno in DISK_FULL


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk that a folder is on, or would be on."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


@contextmanager
def full_disk_raises(folder: Path, error_of: Callable[[str], Exception]) -> Iterator[None]:
    """Replace the OSError of a full disk by an error that tells the user what to do.

    Args:
        folder: Where the block writes.
        error_of: Makes the error from the fact: the folder, the system's words, what is free.
    """
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        fact = f"no space left in {folder}: {error} ({free_bytes(folder):,} bytes are free)"
        raise error_of(fact) from error
