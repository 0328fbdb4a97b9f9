"""What an offline run of Weights & Biases has written, and what its server would make of it.

A file is a LevelDB log of protobuf records after seven bytes: blocks of 32 KiB, whose chunks have a
checksum, a length and a kind (1 whole, 2 first, 3 middle, 4 last).
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7


def records(path: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts = path.read_bytes(), HEADER, b""
    while position + HEADER <= len(data):
        if (left := BLOCK - position % BLOCK) < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        position += HEADER
        if position + length > len(data):  # it is being written
            return
        parts += data[position : position + length]
        position += length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def wait_until_written(folder: Path, limit_s: float = 60) -> None:
    """Wait for the last record: wandb returns before its process has written it."""
    (file,), end = folder.glob("*.wandb"), time.monotonic() + limit_s
    while "exit" not in {record.WhichOneof("record_type") for record in records(file)}:
        assert time.monotonic() < end
        time.sleep(0.01)


def uploaded(folders: list[Path]) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """Return the history of each run, steps with their values, once these folders were synced in
    turn."""
    runs: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for folder in folders:
        (file,) = folder.glob("*.wandb")
        history: list[tuple[int, dict[str, Any]]] = []
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                history = runs.setdefault(record.run.run_id, [])
                if record.run.HasField("branch_point"):
                    point = record.run.branch_point
                    assert (point.run, point.metric) == (record.run.run_id, "_step")
                    history[:] = [row for row in history if row[0] <= point.value]
            elif kind == "history":
                items = record.history.item
                values = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
                history.append((values.pop("_step"), values))
    return runs
