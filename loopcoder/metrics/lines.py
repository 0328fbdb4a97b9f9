"""Files of JSON lines: appended whole, read up to what a killed process tore."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from loopcoder.errors import LoopcoderError
from loopcoder.storage.disk import full_disk_raises

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"

Record = dict[str, Any]


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
        record = json.loads(line)
    except ValueError:  # JSONDecodeError and UnicodeDecodeError
        return None
    return record if isinstance(record, dict) else None


def disk_full_is_an_error(path: Path) -> AbstractContextManager[None]:
    """Say how to go on after 'no space left' and 'quota exceeded'."""
    return full_disk_raises(
        path.parent,
        lambda fact: LoopcoderError.of(
            f"{path} could not be written: {fact}",
            "what a run has recorded must be whole",
            "free space there (checkpoint.keep=N keeps fewer checkpoints), then start the same "
            "command again: it resumes from the newest checkpoint",
        ),
    )
