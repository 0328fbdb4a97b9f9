"""What is on disk under its name is complete: writing that survives kill -9 and power cuts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, TypedDict

from loopcoder.errors import InputError
from loopcoder.storage.digest import file_digest

_LOOK_EVERY_S = 0.2


class FileEntry(TypedDict):
    """What a manifest or marker says of a file."""

    bytes: int
    xxh3_128: str


def sync(file: IO[Any]) -> None:
    """Make what was written to an open file survive a power cut."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make what was created or renamed in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name, synced, when the block ends without an error.

    Until then it is called `<name>.tmp`; after an error nothing is left.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            sync(file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def missed_within[T](
    within_s: float, missed: Callable[[], T | None], now: Callable[[], float] = time.monotonic
) -> T | None:
    """Look until nothing is missed, as long as a network disk may lag; return what is missed at the
    end."""
    until = now() + within_s
    while (found := missed()) is not None and now() <= until:
        time.sleep(_LOOK_EVERY_S)
    return found


@contextmanager
def parsing(path: Path, why: str, fix: str) -> Iterator[None]:
    """Read one of a program's own files in the block; a damaged one is an error.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        InputError: it cannot be read, or is not what was written.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        said = " ".join(line.strip() for line in str(error).splitlines()[:3])
        if isinstance(error, OSError):
            said = error.strerror or said
        elif isinstance(error, KeyError):
            said = f"it has no {error}"
        elif callable(details := getattr(error, "errors", None)):  # of pydantic
            first = details()[0]
            said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        raise InputError.of(f"{path} cannot be read: {said}", why, fix) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file."""
    with whole_file(path) as file:
        file.write(content)


def write_json(path: Path, content: Any) -> None:
    """Write a whole file of JSON."""
    # a path need not be UTF-8: its lone surrogates are spelt out
    text = json.dumps(content, indent=1, ensure_ascii=False).encode(errors="backslashreplace")
    write_bytes(path, text + b"\n")


def synced_entry(path: Path) -> FileEntry:
    """Sync a file to disk; return its size and hash."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "xxh3_128": file_digest(path)}


def fault_of(path: Path, wanted: Mapping[str, Any], *, contents: bool = True) -> str | None:
    """Compare a file with its entry; return what is wrong as a fact for a user, None: nothing.

    Args:
        path: The file.
        wanted: Its `FileEntry`.
        contents: Compare the hash too, not the size alone.
    """
    try:
        size = path.stat().st_size
        if size != wanted["bytes"]:
            return f"{path} has {size:,} bytes, {wanted['bytes']:,} were written"
        if contents and file_digest(path) != wanted["xxh3_128"]:
            return f"{path} ({size:,} bytes) has other content than was written"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}"
    return None


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; links are not followed.

    What cannot be read, or goes away meanwhile, counts as nothing.
    """
    try:
        if not path.is_dir() or path.is_symlink():
            return path.lstat().st_size
        with os.scandir(path) as entries:
            folders, files = [], 0
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    files += entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0
    return files + sum(size_of(Path(folder)) for folder in folders)


def in_words(size_bytes: int) -> str:
    """Write a size for people: 512 B, 1.4 MB, 20 GB (powers of 1000)."""
    size, units = float(size_bytes), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.{1 if size < 9.95 and units[0] != 'B' else 0}f} {units[0]}"
