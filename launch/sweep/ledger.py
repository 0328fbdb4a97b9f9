"""What became of the points of a sweep: a line of ledger.jsonl for each end of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from launch.sweep.points import Point
from loopcoder.errors import EXIT_DONE
from loopcoder.storage.disk import is_disk_full

LEDGER_FILE = "ledger.jsonl"


def note(ledger: Path, point: Point, began_s: float, ended_s: float, code: int) -> bool:
    """Record that a point's run has ended; return False where there is no room for it.

    Args:
        began_s, ended_s: Seconds since the epoch.
    """
    record = {
        "time_s": round(began_s, 3),
        "wall_s": round(ended_s - began_s, 3),
        "point": point.run_dir.name,
        "label": point.label,
        "config_hash": point.names[0],
        "exit_code": code,
    }
    try:
        with ledger.open("ab+") as file:
            torn = file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write(b"\n" * bool(torn) + json.dumps(record).encode() + b"\n")
    except OSError as error:
        if not is_disk_full(error):
            raise
        return False
    return True


def last_exit(point: Point, ledger: Path) -> int | None:
    """Return how the last run of a point, of this very config, ended; None: none has."""
    codes = [
        record["exit_code"]
        for record in records(ledger)
        if record.get("point") == point.run_dir.name and record.get("config_hash") in point.names
    ]
    return codes[-1] if codes else None


def is_finished(point: Point, ledger: Path) -> bool:
    """Say whether this very config ended well by the ledger, and by its metrics at the last
    step."""
    return is_at_last_step(point) and last_exit(point, ledger) == EXIT_DONE


def trained_otherwise(point: Point, ledger: Path) -> bool:
    """Say whether the folder of a point has a finished run of another config: nothing would be
    trained there, and its results would pass for this one's."""
    done = {
        record.get("config_hash")
        for record in records(ledger)
        if record.get("point") == point.run_dir.name and record.get("exit_code") == EXIT_DONE
    }
    return is_at_last_step(point) and bool(done) and not done & set(point.names)


def is_at_last_step(point: Point) -> bool:
    """Say whether the metrics of a point end with its last step."""
    return last_step(point.run_dir) == point.config.train.max_steps


def last_step(run_dir: Path) -> int | None:
    """Return the step with which the metrics of a run end; None: it has none."""
    lines = records(run_dir / "metrics.jsonl")
    return lines[-1].get("step") if lines else None


def rewinds(point: Point) -> int:
    """Return how often a point has gone back, after which the same command goes on."""
    return sum(kind == "run_rewound" for kind in _events(point))


def diverged(point: Point) -> bool:
    """Say whether a point's last run ended so that another point may fare better."""
    of_runs = [k for k in _events(point) if k in ("run_started", "run_diverged", "run_rewound")]
    return of_runs[-1:] == ["run_diverged"]


def _events(point: Point) -> Iterator[str]:
    yield from (record.get("kind", "") for record in records(point.run_dir / "events.jsonl"))


def records(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, if it is there; what is no record, such as a line torn by a kill
    or a full disk, is left out."""
    found = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else []:
        with suppress(ValueError):
            found.append(json.loads(line))
    return [record for record in found if isinstance(record, dict)]
