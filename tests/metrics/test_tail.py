"""The newest values are found from the end of a file, whatever tore it."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from loopcoder.metrics import tail
from loopcoder.metrics.tail import newest_values

NAMES = ("step", "loss", "val/loss")


def write(path: Path, records: list[dict[str, object]], end: str = "") -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + end)


def test_each_field_has_its_newest_value(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "metrics.jsonl"
    evaluated = rng.randrange(1, 3000)
    records: list[dict[str, object]] = [
        {"step": i, "loss": i / 7, "note": "x" * rng.randrange(60)} for i in range(1, 3001)
    ]
    records[evaluated - 1]["val/loss"] = 4.25
    write(path, records)
    assert path.stat().st_size > 65536  # several blocks
    assert newest_values(path, NAMES) == {"step": 3000, "loss": 3000 / 7, "val/loss": 4.25}


def test_torn_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole: list[dict[str, object]] = [{"step": 1, "loss": 3.5}, {"step": 2, "loss": "nan"}]
    write(path, whole, end='[1, "step"]\n\x00\x00{"step": 9\n{"step": 3, "loss": 1.')
    found = newest_values(path, NAMES)
    assert found["step"] == 2 and math.isnan(found["loss"]) and "val/loss" not in found
    path.write_bytes(b'\xff\xfe"step" loss\n' * 3)
    assert newest_values(path, NAMES) == {}
    path.write_text("")
    assert newest_values(path, NAMES) == newest_values(tmp_path / "none", NAMES) == {}


def test_a_long_file_is_not_read_to_its_beginning(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tail, "_LIMIT", 1000)
    path = tmp_path / "metrics.jsonl"
    write(path, [{"step": 1, "val/loss": 2.0}, *({"step": i} for i in range(2, 200))])
    assert newest_values(path, NAMES) == {"step": 199}


def test_what_is_no_record_is_left_out_and_said(
    tmp_path: Path, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert newest_values(path, NAMES) == {"step": 1, "loss": 2.0} and not caplog.messages
    bad = bytes(rng.randrange(1, 50_000)) + b"\n" + b'{"step": 9, "loss"\xff\n'
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + bad + b'{"step": 2}\n{"step": 3, "lo')
    assert newest_values(path, NAMES) == {"step": 2, "loss": 2.0}
    (said,) = caplog.messages
    assert said == f"{path}: of its newest lines some are no records, and left out"
