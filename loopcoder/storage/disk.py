"""Full disks, and files that are larger than may be."""

from __future__ import annotations

import errno
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from loopcoder.errors import InputError

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No space, no quota, or a file larger than the shell (`ulimit -f`) or the file system allows."""


def is_disk_full(error: BaseException) -> bool:
    """Say whether an error is that of a full disk."""
    return isinstance(error, OSError) and error.errno in DISK_FULL


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk that a folder is on, or would be on."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def is_too_large(error: BaseException) -> bool:
    """Say whether an error is that of a file which may not grow, however much space is free."""
    return isinstance(error, OSError) and error.errno == errno.EFBIG


def no_space(error: BaseException, folder: Path) -> str:
    """Say what an error found that `is_disk_full`.

    Args:
        folder: Where something was written.
    """
    if not is_too_large(error):
        return f"no space left in {folder}: {error} ({free_bytes(folder):,} bytes are free)"
    file = _stopped_at(folder, _most_bytes()) or f"a file in {folder}"
    return too_large(error, file)


def too_large(error: BaseException, file: Path | str) -> str:
    """Say what an error found that `is_too_large`, of the file that it names or else `file`."""
    file, limit = getattr(error, "filename", None) or file, _most_bytes()
    if limit is None:
        return f"{file} is too large for its file system: {error}"
    return f"{file} has reached the {limit:,} bytes that files may have (ulimit -f): {error}"


def remedy(error: BaseException, space: str = "free space there") -> str:
    """Return what mends an error that `is_disk_full`: `space`, unless a file is too large."""
    if not is_too_large(error):
        return space
    if _most_bytes() is None:
        return "a folder on another file system (FAT takes 4 GiB for a file)"
    return "ulimit -f unlimited in the shell or job that starts the command"


def _most_bytes() -> int | None:
    """Return the limit of this process for a file; None: there is none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if soft == resource.RLIM_INFINITY else soft


def _stopped_at(folder: Path, limit: int | None) -> Path | None:
    """Return the newest file of a folder that is as large as may be: errors of writes name none."""
    found: list[tuple[float, Path]] = []
    with suppress(OSError):  # files come and go
        for path in folder.rglob("*"):
            status = path.lstat()
            if status.st_size == limit:
                found.append((status.st_mtime, path))
    return max(found)[1] if found else None


@contextmanager
def full_disk_raises(folder: Path, error_of: Callable[[str], Exception]) -> Iterator[None]:
    """Replace the OSError of a full disk by an error that tells the user what to do.

    Args:
        folder: Where the block writes.
        error_of: Makes the error from the fact: the folder, the system's words, what is free. Its
            fix is about space; of a file that is too large it is replaced.
    """
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raised = error_of(no_space(error, folder))
        if is_too_large(error) and isinstance(raised, InputError):
            fix = f"{remedy(error)}, then start the same command again"
            raised = type(raised)([replace(p, fix=fix) for p in raised.problems])
        raise raised from error
