"""metrics.jsonl is the truth: exact, whole after a kill, one uninterrupted curve after a resume."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopcoder.errors import InputError, LoopcoderError
from loopcoder.metrics.writer import MetricsWriter, append_event, merge_by_step, read_metrics


def write_steps(run_dir: Path, steps: range, *, resume_step: int | None) -> None:
    with MetricsWriter(run_dir, resume_step=resume_step) as writer:
        for step in steps:
            writer.log({"step": step, "loss": 1.0 / step})


def kinds(run_dir: Path) -> list[dict[str, Any]]:
    return read_metrics(run_dir / "events.jsonl")


def test_one_line_is_one_object(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, resume_step=None) as writer:
        writer.log({"step": 1, "loss": 2.5, "lr": 0.1})
        writer.event("checkpoint_saved", step=1, path=tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.5, "lr": 0.1}\n'
    (event,) = kinds(tmp_path)
    assert event["kind"] == "checkpoint_saved"
    assert event["path"] == str(tmp_path)
    assert event["time"].endswith("+00:00")


def test_line_is_readable_at_once(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, resume_step=None)
    writer.log({"step": 1})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]
    writer.close()
    writer.close()


def test_floats_survive_bit_for_bit(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    bits = np.random.default_rng(seed).integers(0, 2**32, 3000, dtype=np.uint32)
    floats = bits.view(np.float32)
    doubles = [random.Random(seed + i).uniform(-1e3, 1e3) for i in range(300)]
    with MetricsWriter(tmp_path, resume_step=None) as writer:
        for step, value in enumerate([*floats, *doubles]):
            writer.log({"step": step, "loss": value, "as_float": float(value)})
    read = [r["loss"] for r in read_metrics(tmp_path / "metrics.jsonl")]
    assert read == pytest.approx(
        [r["as_float"] for r in read_metrics(tmp_path / "metrics.jsonl")], rel=0, abs=0, nan_ok=True
    )
    for wanted, got in zip(floats, read, strict=False):
        if np.isnan(wanted):
            assert math.isnan(got)
        else:
            assert struct.pack("f", got) == wanted.tobytes()
    for wanted_double, got in zip(doubles, read[len(floats) :], strict=True):
        assert struct.pack("d", got) == struct.pack("d", wanted_double)


def test_not_finite_numbers_are_valid_json(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, resume_step=None) as writer:
        writer.log({"step": 1, "a": math.nan, "b": math.inf, "c": np.float32(-math.inf)})
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {"step": 1, "a": "nan", "b": "inf", "c": "-inf"}
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(record["a"])
    assert (record["b"], record["c"]) == (math.inf, -math.inf)


def test_tensors_are_taken_by_their_item(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with MetricsWriter(tmp_path, resume_step=None) as writer:
        writer.log({"step": 1, "loss": torch.tensor(0.1), "skipped": torch.tensor(3)})
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert record == {"step": 1, "loss": float(np.float32(0.1)), "skipped": 3}


@pytest.mark.parametrize("record", [{"loss": 1.0}, {"step": 1.0}, {"step": True}])
def test_a_record_needs_a_step(tmp_path: Path, record: dict[str, Any]) -> None:
    with (
        MetricsWriter(tmp_path, resume_step=None) as writer,
        pytest.raises(ValueError, match="integer step"),
    ):
        writer.log(record)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_resume_gives_the_bytes_of_an_uninterrupted_run(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    write_steps(whole, range(1, 21), resume_step=None)
    write_steps(cut, range(1, 14), resume_step=None)
    with (cut / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 14, "lo')
    write_steps(cut, range(11, 21), resume_step=10)
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert sorted(p.name for p in cut.iterdir()) == ["events.jsonl", "metrics.jsonl"]
    (event,) = kinds(cut)
    assert {k: v for k, v in event.items() if k != "time"} == {
        "kind": "metrics_resumed",
        "step": 10,
        "kept_lines": 10,
        "last_kept_step": 10,
        "discarded_lines": 3,
        "first_discarded_step": 11,
        "last_discarded_step": 13,
        "unreadable_lines": 1,
    }


def test_resume_keeps_both_lines_of_its_step(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, resume_step=None) as writer:
        for record in ({"step": 5, "loss": 1.0}, {"step": 5, "val/loss": 2.0}, {"step": 6}):
            writer.log(record)
    MetricsWriter(tmp_path, resume_step=5).close()
    assert merge_by_step(read_metrics(tmp_path / "metrics.jsonl")) == [
        {"step": 5, "loss": 1.0, "val/loss": 2.0}
    ]


def test_resume_ends_a_last_line_that_lacks_only_its_newline(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    write_steps(tmp_path, range(3, 4), resume_step=2)
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_resume_without_a_file(tmp_path: Path) -> None:
    write_steps(tmp_path, range(8, 10), resume_step=7)
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [8, 9]
    assert kinds(tmp_path)[0]["last_kept_step"] is None


def test_a_failed_resume_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_steps(tmp_path, range(1, 6), resume_step=None)
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LoopcoderError, match="No space left"):
        MetricsWriter(tmp_path, resume_step=2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert not (tmp_path / "metrics.jsonl.tmp").exists()


def test_a_fresh_run_moves_the_old_curve_aside(tmp_path: Path) -> None:
    for last in (3, 4, 5):
        write_steps(tmp_path, range(1, last + 1), resume_step=None)
    lengths = {p.name: len(read_metrics(p)) for p in tmp_path.glob("metrics*.jsonl")}
    assert lengths == {"metrics.1.jsonl": 3, "metrics.2.jsonl": 4, "metrics.jsonl": 5}
    assert [(e["kind"], e["to"]) for e in kinds(tmp_path)] == [
        ("metrics_moved", "metrics.1.jsonl"),
        ("metrics_moved", "metrics.2.jsonl"),
    ]


def samples_of(steps: range) -> list[dict[str, Any]]:
    return [{"step": step, "sample": n, "prompt": f"\x1b\n{n}"} for step in steps for n in (0, 1)]


def write_samples(run_dir: Path, steps: range, *, resume_step: int | None) -> None:
    with MetricsWriter(run_dir, resume_step=resume_step) as writer:
        for step in steps:
            writer.samples(samples_of(range(step, step + 1)))
            writer.log({"step": step})


def test_samples_are_cut_and_moved_as_the_curve_is(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    write_samples(tmp_path, range(1, 6), resume_step=None)
    with file.open("ab") as torn:
        torn.write(b'{"step": 6, "sam')
    write_samples(tmp_path, range(4, 5), resume_step=3)
    assert read_metrics(file) == samples_of(range(1, 5))
    with MetricsWriter(tmp_path, resume_step=2) as writer:
        writer.samples([])
        assert read_metrics(file) == samples_of(range(1, 3))
    file.write_bytes(file.read_bytes() + b"\0\0\n")
    write_samples(tmp_path, range(1, 2), resume_step=None)
    assert read_metrics(tmp_path / "samples.1.jsonl") == samples_of(range(1, 3))
    assert (tmp_path / "samples.damaged.jsonl").read_bytes() == b"\0\0\n"
    assert read_metrics(file) == samples_of(range(1, 2))
    assert ("samples_moved", "samples.1.jsonl") in [
        (e["kind"], e.get("to")) for e in kinds(tmp_path)
    ]


def test_a_run_without_samples_has_no_file_of_them(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 3), resume_step=None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["events.jsonl", "metrics.jsonl"]


def garbage(rng: random.Random) -> list[bytes]:
    """Lines that no run has written as they are, in any order."""
    record = json.dumps({"step": rng.randrange(99), "loss": rng.random(), "kind": "note"}).encode()
    lines = [
        bytes(rng.randrange(1, 5000)),  # NUL bytes, of a power cut
        bytes(rng.randrange(1, 9)) + record,
        record[: rng.randrange(1, len(record))],
        record.replace(b"note", b"n\xffte"),
        rng.randbytes(50).replace(b"\n", b""),
        record + record,
        b"[" * 100_000,
        b'{"step": NaN, "kind": null}',
        b'{"loss": 1.0}',
        b"[3]",
        b"null",
        b"",
    ]
    rng.shuffle(lines)
    return [line + b"\n" for line in lines]


def mixed(path: Path, bad: Sequence[bytes], rng: random.Random) -> list[int]:
    """Put lines between those of a file; return their numbers."""
    lines = [(line, False) for line in path.read_bytes().splitlines(keepends=True)]
    for line in bad:
        lines.insert(rng.randrange(len(lines) + 1), (line, True))
    path.write_bytes(b"".join(line for line, _ in lines))
    return [number for number, (_, is_bad) in enumerate(lines, 1) if is_bad]


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
def test_a_reader_leaves_out_what_is_no_record(
    tmp_path: Path, rng: random.Random, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = tmp_path / name
    path.write_text("".join(f'{{"step": {n}, "kind": "note"}}\n' for n in range(9)))
    path.write_bytes(path.read_bytes() + b'{"step": 3, "kind"')
    assert [r["step"] for r in read_metrics(path)] == [*range(9)] and not caplog.records
    path.write_bytes(path.read_bytes().rpartition(b"\n")[0] + b"\n")
    first, *_ = mixed(path, garbage(rng), rng)
    for _ in range(2):
        assert [r["step"] for r in read_metrics(path)] == [*range(9)]
    (warning,) = caplog.messages  # once
    assert f"{path}: lines {first}, " in warning and "7 more are no records" in warning
    with pytest.raises(InputError, match="does not exist"):
        read_metrics(tmp_path / "none.jsonl")


@pytest.mark.parametrize("resume_step", [7, None])
def test_a_start_puts_aside_what_is_no_record_and_loses_nothing_else(
    tmp_path: Path, rng: random.Random, caplog: pytest.LogCaptureFixture, resume_step: int | None
) -> None:
    write_steps(tmp_path, range(1, 8), resume_step=None)
    with MetricsWriter(tmp_path, resume_step=7) as writer:
        for n in range(5):
            writer.event("note", number=n)
    metrics, events = tmp_path / "metrics.jsonl", tmp_path / "events.jsonl"
    before, bad, told = (metrics.read_bytes(), events.read_bytes()), garbage(rng), {}
    for path in (metrics, events):
        told[path.name] = mixed(path, bad, rng)
    write_steps(tmp_path, range(8, 10), resume_step=resume_step)
    moved = metrics if resume_step else tmp_path / "metrics.1.jsonl"
    assert moved.read_bytes().startswith(before[0])
    assert events.read_bytes().startswith(before[1])
    for name in ("metrics", "events"):
        there = (tmp_path / f"{name}.damaged.jsonl").read_bytes()
        assert sorted(there.splitlines(keepends=True)) == sorted(b"".join(bad).splitlines(True))
    aside = {e["file"]: e["lines"] for e in kinds(tmp_path) if e["kind"] == "lines_set_aside"}
    assert aside == told
    assert sum("put aside in events.damaged.jsonl" in text for text in caplog.messages) == 1
    caplog.clear()
    write_steps(tmp_path, range(10, 11), resume_step=9)
    assert not caplog.messages


def test_a_line_beside_the_writer_does_not_join_a_torn_one(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"kind": "a"}\n{"kind": "b", "ti')
    append_event(tmp_path, "c")
    append_event(tmp_path, "d")
    assert [e["kind"] for e in read_metrics(tmp_path / "events.jsonl")] == ["a", "c", "d"]


WRITE_FOREVER = """
import sys
from collections.abc import Sequence
from pathlib import Path
from loopcoder.metrics.writer import MetricsWriter
writer = MetricsWriter(Path(sys.argv[1]), resume_step=None)
step = 0
while True:
    step += 1
    writer.log({"step": step, "loss": 1 / step, "pad": "x" * (step * 37 % 5000)})
    if step == 200:
        print("going", flush=True)
"""


def test_kill_9_leaves_whole_lines(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"going\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert len(records) >= 200
    assert [r["step"] for r in records] == list(range(1, len(records) + 1))
    assert all(len(r["pad"]) == r["step"] * 37 % 5000 for r in records)
    write_steps(tmp_path, range(151, 153), resume_step=150)
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 153))


def test_full_disk_names_the_fix_and_tears_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.write
    writer = MetricsWriter(tmp_path, resume_step=None)
    writer.log({"step": 1})
    room = [5]

    def write(fd: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real_write(fd, data[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(LoopcoderError) as error:
            writer.log({"step": 2, "loss": 1.0})
    assert "No space left" in str(error.value)
    assert "fix: free space" in str(error.value)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    writer.log({"step": 2})
    writer.close()
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


class Recorder:
    """A sink that keeps what it gets, and fails from one record on."""

    def __init__(self, fail_from: float = math.inf, fail_close: bool = False):
        self.fail_from, self.fail_close = fail_from, fail_close
        self.records: list[Any] = []
        self.events: list[str] = []
        self.closed = 0

    def log(self, record: Any) -> None:
        if record["step"] >= self.fail_from:
            raise ConnectionError("the server is gone")
        self.records.append(record["step"])

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append(kind)

    def close(self) -> None:
        self.closed += 1
        if self.fail_close:
            raise RuntimeError("cannot close")


def test_a_failing_sink_is_dropped_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad, last = Recorder(), Recorder(fail_from=3, fail_close=True), Recorder(fail_close=True)
    with (
        caplog.at_level(logging.WARNING),
        MetricsWriter(tmp_path, sinks=[bad, good, last], resume_step=None) as writer,
    ):
        for step in range(1, 6):
            writer.log({"step": step})
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert (good.records, bad.records) == ([1, 2, 3, 4, 5], [1, 2])
    assert (good.closed, bad.closed) == (1, 1)
    assert good.events == ["sink_failed"]  # `last` fails at close, when good is closed already
    assert [e["error"] for e in kinds(tmp_path)] == [
        "ConnectionError: the server is gone",
        "RuntimeError: cannot close",
    ]
    assert len([r for r in caplog.records if "the server is gone" in r.message]) == 1


def test_metrics_import_no_torch() -> None:
    code = (
        "import sys, loopcoder.metrics.writer, loopcoder.metrics.sinks, loopcoder.metrics.plots, "
        "loopcoder.metrics.throughput; "
        "print(sorted({'torch', 'wandb', 'tensorboard', 'matplotlib', 'rich', 'numpy'} "
        "& set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
