"""The newest values of a metrics.jsonl, and the newest event of an events.jsonl."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from loopcoder.metrics.lines import Record, parse

_log = logging.getLogger(__name__)

_BLOCK = 1 << 16
_LIMIT = 1 << 22
"""Bytes that are read at most: a run without evaluations must not be read to its beginning."""


def newest_values(path: Path, names: Collection[str]) -> dict[str, float]:
    """Return the newest value of each of these fields, as far as the end of the file has them.

    Lines that are torn or no records are passed over, those with a warning; a missing file has no
    values.

    Raises:
        OSError: it cannot be read.
    """
    found: dict[str, float] = {}
    missing = {name: f'"{name}"'.encode() for name in names}
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return found
    damaged = 0
    with file:
        for block, is_last in _blocks_backwards(file):
            if not any(key in block for key in missing.values()):
                continue
            *whole, end = block.split(b"\n")
            for line in reversed([*whole, end]):
                record = parse(line)
                # what follows the last newline was torn, or is being written
                damaged += record is None and bool(line) and not (is_last and line is end)
                for name, value in _numbers(record or {}).items():
                    if missing.pop(name, None) is not None:
                        found[name] = value
            if not missing:
                break
    if damaged:
        _warn_once(path)
    return found


@cache
def _warn_once(path: Path) -> None:
    """A table that lives reads the same files every second."""
    _log.warning("%s: of its newest lines some are no records, and left out", path)


def newest_event(path: Path, kinds: Collection[str]) -> dict[str, Any] | None:
    """Return the newest event of one of these kinds, as far as the end of the file has one.

    Raises:
        OSError: it cannot be read.
    """
    if not path.exists():
        return None
    with path.open("rb") as file:
        for block, _ in _blocks_backwards(file):
            for line in reversed(block.split(b"\n")):
                if (event := parse(line)) is not None and event.get("kind") in kinds:
                    return event
    return None


def _numbers(record: Record) -> dict[str, float]:
    """Return the numbers of a record; what is not finite is written as a string."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
        elif value in ("nan", "inf", "-inf"):
            found[name] = float(value)
    return found


def _blocks_backwards(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Yield whole lines of a file, some at a time, from its last, of its last `_LIMIT` bytes, and
    whether these are its last."""
    end = size = file.seek(0, os.SEEK_END)
    first, rest, is_last = max(0, size - _LIMIT), b"", True
    while end > first:
        start = max(first, end - _BLOCK)
        file.seek(start)
        rest, newline, lines = (file.read(end - start) + rest).partition(b"\n")
        if newline:
            yield lines, is_last
            is_last = False
        end = start
    if first == 0:
        yield rest, is_last
