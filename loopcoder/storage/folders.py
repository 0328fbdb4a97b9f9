"""Folders that the user names, and what stands in their way."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loopcoder.errors import DiskFull, InputError
from loopcoder.storage.disk import free_bytes, full_disk_raises, is_disk_full
from loopcoder.storage.files import in_words, sync_folder
from loopcoder.storage.lock import hold


def make_folder(folder: Path, setting: str) -> None:
    """Make a folder that is written to later, and write to it once.

    Args:
        folder: The folder; it may be there already.
        setting: Name of the field that gives it.

    Raises:
        InputError: it cannot be made, or nothing can be written there.
        DiskFull: its disk has no room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull.of(
                f"{setting}={folder}: {error.strerror}",
                "there must be room for what is written there",
                f"free space there, or {setting}=ANOTHER",
            ) from error
        raise InputError.of(
            f"{setting}={folder}: {error.strerror}", _reason(folder, error), f"{setting}=ANOTHER"
        ) from error


def is_there(path: Path) -> bool:
    """Say whether there is a file or a folder; of a name that is too long there is none."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises for such a name


@contextmanager
def folder_for(folder: Path, setting: str) -> Iterator[None]:
    """Make a folder, as `make_folder`; if it was not there before and nothing is in it after the
    block, as where a run is refused, it goes again."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder, setting)
    try:
        yield
    finally:
        with suppress(OSError):  # something is in it
            for path in new:
                path.rmdir()


def _reason(folder: Path, error: OSError) -> str:
    links = (path for path in (folder, *folder.parents) if path.is_symlink())
    dangling = next((path for path in links if not path.exists()), None)
    if dangling is not None:
        return f"{dangling} is a link to {dangling.readlink()}, which is not there"
    in_the_way = next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None)
    if in_the_way is not None:
        return f"{in_the_way} is a file, and a folder is needed there"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "this user may not write there"
    if error.errno == errno.EROFS:
        return "its disk is read-only"
    existing = next((p for p in folder.absolute().parents if p.is_dir()), Path("/"))
    return f"the system makes no folder in {existing}"


@contextmanager
def whole_folder(
    folder: Path, setting: str, size_bytes: int, *, may_be_empty: bool = False
) -> Iterator[Path]:
    """Yield an empty folder to write to, which takes its name when the block ends without an error.

    Until then it is called `.<name>.part`; after an error nothing is left. What a process left
    behind that was killed is removed by the next one.

    Args:
        folder: Not there yet.
        size_bytes: Room that it asks for.
        may_be_empty: An empty folder may be there.

    Raises:
        InputError: something has its name already, or it cannot be made.
        DiskFull: its disk has no room for it.
    """
    refuse_unnamed(folder, setting)

    def busy(holder: str) -> None:
        raise InputError.of(
            f"process {holder} is writing {setting}={folder}",
            "one process writes a folder",
            f"wait for it, or {setting}=ANOTHER",
        )

    def full(fact: str) -> DiskFull:
        asked = in_words(size_bytes)
        return DiskFull.of(
            fact,
            f"{setting}={folder} asks for {asked}, some to spare; nothing of it is left",
            f"free {asked} there, or {setting}=FOLDER on another disk",
        )

    make_folder(folder.absolute().parent, setting)
    part, lock = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.lock")
    with hold(lock, busy, needed=False):
        try:
            if os.path.lexists(folder) and not (may_be_empty and _is_empty(folder)):
                raise InputError.of(
                    f"{setting}={folder}: {folder} is there already",
                    "what is there is not replaced",
                    f"{setting}=ANOTHER",
                )
            shutil.rmtree(part, ignore_errors=True)
            if (free := free_bytes(part.parent)) < size_bytes:
                raise full(f"{part.parent} has {in_words(free)} of free space")
            with full_disk_raises(part.parent, full):
                make_folder(part, setting)
                yield part
                sync_folder(part)
                part.rename(folder)
                sync_folder(folder.absolute().parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def refuse_unnamed(folder: Path, setting: str) -> None:
    """Raise InputError for a path such as `.` or `..`, which no new folder can have."""
    if folder.name in ("", ".."):
        raise InputError.of(
            f"{setting}={folder}", "a new folder is written, which has a name", f"{setting}=NAME"
        )
