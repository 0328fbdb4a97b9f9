"""What is on disk is complete, or is not there: writing that survives kill -9 and power cuts.

A task that is done leaves a marker, written last: JSON with the fingerprint of all that determined
its result, what it found, and the size and hash of its files. This is the only kind of marker that
the pipeline has.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from loopcoder.errors import InputError
from loopcoder.storage.digest import file_digest

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fingerprint(*parts: Any) -> str:
    """Hash what determines a result (anything that JSON can say) into 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())


def fsync_folder(folder: Path) -> None:
    """Make what was renamed in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under another name, sync and rename it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write a file of JSON under another name, sync and rename it."""
    # a path need not be UTF-8: its lone surrogates are spelt out
    text = json.dumps(content, indent=1, ensure_ascii=False).encode(errors="backslashreplace")
    write_bytes(path, text + b"\n")


def synced_file(path: Path) -> dict[str, Any]:
    """Sync a file to disk; return its size and hash."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "xxh3_128": file_digest(path)}


def synced_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Sync every file of a folder to disk; return the size and hash of each by its name."""
    return {path.name: synced_file(path) for path in sorted(folder.iterdir())}


def write_marker(path: Path, made_of: str, **facts: Any) -> dict[str, Any]:
    """Say that a task is done: its files are on disk already. Return what was written."""
    marker = {"fingerprint": made_of, **facts}
    write_json(path, marker)
    return marker


def read_marker(path: Path, made_of: str | None) -> dict[str, Any] | None:
    """Return the content of a done marker, None if there is none.

    Args:
        path: Where it would be.
        made_of: The fingerprint that it must have; None: any.

    Raises:
        InputError: it was altered, or speaks of another input or config.
    """
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))
        found = marker["fingerprint"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError.of(
            f"cannot read {path}: {e!r}",
            "markers are written whole; this one was altered",
            f"delete {path} and run its task again",
        ) from e
    if made_of not in (None, found):
        raise InputError.of(
            f"{path} has the fingerprint {found}, this config {made_of}",
            "what is there was made from other documents or another config; the two must not mix",
            f"another folder, or delete {path.parent}",
        )
    return dict(marker)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk into an error for the user; what was begun is redone by the next run."""
    try:
        yield
    except OSError as e:
        if e.errno not in DISK_FULL:
            raise
        raise InputError.of(
            f"no space left in {folder}: {e}",
            "the stages of a corpus need up to twice the size of its documents beside it, and "
            f"{shutil.disk_usage(_existing(folder)).free:,} bytes are free",
            "free some space and start the same command again: it continues where it was",
        ) from e


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
