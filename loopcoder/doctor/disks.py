"""Disks that a run writes to: whether they answer, how fast they are, and what is free."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from pathlib import Path

from loopcoder.doctor import thresholds as t
from loopcoder.doctor.findings import Seen
from loopcoder.storage.disk import is_disk_full, remedy
from loopcoder.storage.files import in_words


def check_disk(setting: str, folder: str, must_write: bool = True, needed_bytes: int = 0) -> Seen:
    """Write a file where a run would, read it again, and remove it.

    Args:
        setting: The field that names the folder, which is the name of the check.
        folder: It need not be there; what would hold it is looked at, and nothing is made.
        must_write: A folder that is read-only is an error.
        needed_bytes: What the run keeps there.
    """
    seen, check = Seen(), f"disk of {setting}"
    try:
        place = existing(Path(folder))
        system = os.statvfs(place)
    except OSError as error:
        why, fix = "the run writes there", f"mount it again, or {setting}=ANOTHER"
        seen.add(check, "error", f"{folder}: {error.strerror}", why, fix)
        return seen
    if system.f_blocks == 0:  # as /proc and /sys
        why, fix = "nothing that a run writes would stay there", f"{setting}=FOLDER of a disk"
        seen.add(check, "error", f"{place} is of no disk", why, fix)
        return seen
    free = system.f_bavail * system.f_frsize
    _room(seen, check, setting, place, free, needed_bytes)
    if system.f_files and system.f_favail < t.FREE_INODES:
        seen.add(
            check,
            "warning" if system.f_favail else "error",
            f"{place}: {system.f_favail:,} of {system.f_files:,} inodes are free",
            "every file takes one, and without any the disk is full although it has room",
            f"remove files there (du --inodes -s {place}/*), or {setting}=ANOTHER",
        )
    if free < 2 * t.DISK_PROBE_BYTES:
        return seen
    try:
        written, read = speed(place)
    except OSError as error:
        _unwritable(seen, check, setting, place, error, must_write)
        return seen
    fact = f"{place}: {_rate(written)} written, {_rate(read)} read, {free / 2**30:,.1f} GiB free"
    if min(written, read) >= t.DISK_BYTES_PER_S:
        seen.ok(check, fact, written / 1e6, "MB/s written")
        return seen
    why, level = "below 100 MB/s saves, and starts from a corpus, take minutes", "warning"
    if needed_bytes:
        why = f"the checkpoints that are kept take {needed_bytes / written:,.0f} s to write"
        level = "note" if needed_bytes / written < t.SAVES_S else "warning"
    fix = f"{setting}= on a faster disk"
    fix += "; checkpoint.async_save=true, a larger checkpoint.interval" if must_write else ""
    seen.add(check, level, fact, why, fix, written / 1e6, "MB/s written")  # type: ignore[arg-type]
    return seen


def check_readable(setting: str, folder: str) -> Seen:
    """Look into a folder that a run reads; whether what is there is a corpus is for others to say.

    Args:
        setting: The field that names the folder, which is the name of the check.
    """
    seen, check = Seen(), f"disk of {setting}"
    try:
        os.statvfs(existing(Path(folder)))
        if Path(folder).is_dir():
            os.listdir(folder)  # noqa: PTH208 - Path.iterdir may ask later
        if Path(folder).exists() or "*" in folder:
            seen.ok(check, folder)
        else:
            seen.add(check, "note", f"{folder} is not there", "the run reads it", f"{setting}=PATH")
    except OSError as error:
        why, fix = "the run reads it", f"mount it again, or {setting}=ANOTHER"
        seen.add(check, "error", f"{folder}: {error.strerror}", why, fix)
    return seen


def existing(folder: Path) -> Path:
    """Return a folder, or the nearest that would hold it."""
    whole = folder.expanduser().absolute()
    for path in (whole, *whole.parents):
        try:
            os.stat(path)  # noqa: PTH116 - exists() says of every fault that nothing is there
        except (FileNotFoundError, NotADirectoryError):
            continue
        return path
    return Path("/")


def speed(folder: Path, size: int = t.DISK_PROBE_BYTES) -> tuple[float, float]:
    """Return the bytes per second with which a file is written, to the disk itself, and read.

    Raises:
        OSError: nothing can be written there.
    """
    block = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        began = time.perf_counter()
        for _ in range(size >> 20):
            file.write(block)
        os.fsync(file.fileno())
        written = time.perf_counter() - began
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        began = time.perf_counter()
        while file.read(1 << 20):
            pass
        read = time.perf_counter() - began
    return size / written, size / read


def _room(seen: Seen, check: str, setting: str, place: Path, free: int, needed_bytes: int) -> None:
    if free >= max(needed_bytes, t.FREE_BYTES):
        return
    fact, why = f"{place} has {in_words(free)} free", "a full disk ends a run"
    if needed_bytes > free:
        why = f"the checkpoints that are kept come to {in_words(needed_bytes)}"
    level = "error" if free < 2 * t.DISK_PROBE_BYTES else "warning"
    fix = f"free space there, {setting}=ANOTHER, or a lower checkpoint.keep"
    seen.add(check, level, fact, why, fix)  # type: ignore[arg-type]


def _unwritable(
    seen: Seen, check: str, setting: str, place: Path, error: OSError, must_write: bool
) -> None:
    fact = f"{place}: {error.strerror}"
    if is_disk_full(error):
        why, fix = "the run writes there", remedy(error, "free space or quota there")
        fix += f", or {setting}=ANOTHER"
        seen.add(check, "error", fact, why, fix)
    elif not must_write and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        why = "corpora that are there are read; none is built there"
        seen.add(check, "note", fact, why, f"{setting}=ANOTHER, to build corpora")
    else:
        why, fix = "the run writes there", f"{setting}=ANOTHER, or make it writable for this user"
        seen.add(check, "error", fact, why, fix)


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:,.0f} MB/s"
