"""Files of JSON lines: appended whole, and read past what a kill or a power cut left in them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

from loopcoder.errors import DiskFull
from loopcoder.storage.disk import full_disk_raises
from loopcoder.storage.files import sync, whole_file

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
SAMPLES_FILE = "samples.jsonl"

Record = dict[str, Any]

_NAMED = 5
"""Lines that a message names at most."""


class LineFile:
    """A file of JSON lines, opened for appending; what a killed process tore is cut off."""

    def __init__(self, path: Path):
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        _cut_torn_tail(self._fd)

    def append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        start = os.fstat(self._fd).st_size
        with disk_full_is_an_error(self._path):
            try:
                # Unbuffered, and one system call as long as the disk has room: a kill falls before
                # or after it.
                written = os.write(self._fd, line)
                while written < len(line):
                    written += os.write(self._fd, line[written:])
            except OSError:
                os.ftruncate(self._fd, start)
                raise

    def sync(self) -> None:
        with disk_full_is_an_error(self._path):
            os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _cut_torn_tail(fd: int) -> None:
    """Cut the file after its last newline."""
    end = os.fstat(fd).st_size
    position = end
    while position > 0:
        start = max(0, position - 4096)
        newline = os.pread(fd, position - start, start).rfind(b"\n")
        if newline >= 0:
            position = start + newline + 1
            break
        position = start
    if position < end:
        os.ftruncate(fd, position)


def parse(line: bytes) -> Record | None:
    """Parse one line; None when it is no JSON object. A torn one lacks its last brace."""
    try:
        record = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        return None
    return record if isinstance(record, dict) else None


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def parse_for(name: str, line: bytes) -> Record | None:
    """Parse one line of metrics.jsonl or events.jsonl by the file's name; None: it is no record,
    which has an integer `step` there and a `kind` here."""
    record = parse(line)
    if record is None:
        return None
    is_whole = (
        isinstance(record.get("kind"), str)
        if name == EVENTS_FILE
        else type(record.get("step")) is int
    )
    return record if is_whole else None


def _damaged_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of every line that is no record, but for a last one without its
    newline, which is being written or was torn by a kill."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n") and parse_for(path.name, line) is None:
                yield number, line


def set_aside_damaged(path: Path) -> tuple[list[int], Path]:
    """Move the lines that are no records to the end of a file beside it, `<name>.damaged.jsonl`.

    Returns their numbers and that file. Atomic: a kill on the way loses no line, and may leave one
    in both files. Raises DiskFull when there is no room.
    """
    aside = path.with_name(f"{path.stem}.damaged{path.suffix}")
    damaged = dict(_damaged_lines(path)) if path.exists() else {}
    if not damaged:
        return [], aside
    with disk_full_is_an_error(path):
        with aside.open("ab") as file:
            file.writelines(damaged.values())
            sync(file)
        with path.open("rb") as old, whole_file(path) as new:
            new.writelines(line for number, line in enumerate(old, 1) if number not in damaged)
    return list(damaged), aside


def numbers_in_words(numbers: Sequence[int]) -> str:
    """Name some lines: `line 3 is no record`, `lines 3, 5 and 7 more are no records`."""
    if len(numbers) == 1:
        return f"line {numbers[0]} is no record"
    named, more = numbers[:_NAMED], len(numbers) - _NAMED
    listed = ", ".join(map(str, named if more > 0 else named[:-1]))
    return f"lines {listed} and {f'{more} more' if more > 0 else named[-1]} are no records"


def disk_full_is_an_error(path: Path) -> AbstractContextManager[None]:
    """Say how to go on after 'no space left' and 'quota exceeded'."""
    return full_disk_raises(
        path.parent,
        lambda fact: DiskFull.of(
            f"{path} could not be written: {fact}",
            "what a run has recorded must be whole",
            "free space there (checkpoint.keep=N keeps fewer checkpoints), then start the same "
            "command again: it resumes from the newest checkpoint",
        ),
    )
