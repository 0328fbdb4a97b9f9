"""The account of a run's time, of a run that was killed, gone back and stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from loopcoder.metrics.goodput import account_of, read_marks
from loopcoder.metrics.writer import read_metrics
from tests.chaos.test_lost import until
from tests.train.conftest import (  # noqa: F401
    Start,
    documents,
    environment,
    finish,
    start,
)
from tests.train.test_resume import wait_for_step

pytestmark = pytest.mark.chaos

LONG = ["checkpoint.interval=5", "checkpoint.keep=null", "eval.interval=10"]


def test_only_steps_that_are_there_in_the_end_count(
    start: Start,  # noqa: F811
    tmp_path: Path,
    seed: int,
) -> None:
    """metrics.jsonl, which has each step once, says by itself what they took."""
    run_dir = tmp_path / "run"
    began = time.time()
    process = start(run_dir, *LONG, "train.max_steps=1000")
    wait_for_step(process, run_dir, random.Random(seed).randrange(21, 40))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    killed_at = time.time()
    assert len(read_marks(run_dir)) >= 5  # its beginning, and a line for each save

    # goes back two checkpoints or more, trains some steps and is asked to stop
    resumed_at = time.time()
    process = start(run_dir, *LONG, "train.max_steps=1000", "checkpoint.step=10")
    until(lambda: {m.session for m in read_marks(run_dir)} == {0, 1}, process)
    wait_for_step(process, run_dir, 14)
    process.send_signal(signal.SIGTERM)
    finish(process, code=75)
    marks = read_marks(run_dir)
    assert {mark.session: mark.from_step for mark in marks} == {0: 0, 1: 10}
    last = read_metrics(run_dir / "events.jsonl")[-1]
    assert last["kind"] == "run_stopped" and last["exit_code"] == 75
    assert "stopped after step" in last["why"]

    stopped = marks[-1].step
    output = finish(start(run_dir, *LONG, f"train.max_steps={stopped + 4}"))
    wall = time.time() - began
    assert "in steps that count; lost steps " in output

    lines = read_metrics(run_dir / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, stopped + 5))
    took = sum(line["step_time_s"] - line["data_wait_s"] for line in lines if "loss" in line)
    account = account_of(read_marks(run_dir))
    print(json.dumps(dict(account.seconds)), took, wall)
    assert account.seconds["steps"] == pytest.approx(took, rel=0.05, abs=0.1)
    assert lines[-1]["goodput"] == pytest.approx(account.goodput, rel=0.5)
    assert 0.5 * wall < account.total <= wall + 0.01
    # what the killed process trained after step 10 is lost as far as its lines say it
    first = [mark for mark in read_marks(run_dir) if mark.session == 0]
    undone = first[-1].seconds["steps"] - next(m for m in first if m.step == 10).seconds["steps"]
    assert account.seconds["lost"] >= undone > 0
    assert account.seconds["down"] >= resumed_at - killed_at
    assert all(line["goodput"] <= 1 for line in lines if "loss" in line)
