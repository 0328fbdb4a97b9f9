"""Asked to stop in any phase: saved, out with 75, and the same command gives the same curve."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loopcoder.checkpoint import format as checkpoints
from loopcoder.metrics.writer import merge_by_step, read_metrics
from tests.parts import one_of
from tests.train.conftest import (  # noqa: F401
    SMALL,
    Start,
    documents,
    environment,
    finish,
    start,
)
from tests.train.test_resume import curve, wait_for_step

LIMIT_S = 30
"""What schedulers give."""
SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT]
EVALUATED = ["train.max_steps=6", "checkpoint.interval=2", "eval.interval=4", "eval.samples=2"]

ASKED_BEFORE_EVALUATION = """
from loopcoder.metrics.writer import MetricsWriter
log = MetricsWriter.log
def logged(self, record):
    log(self, record)
    if record["step"] == STEP - 1:
        os.kill(os.getpid(), signal.SIGTERM)
        from loopcoder.train.validation import Evaluator
        Evaluator.__call__ = lambda *_, **__: sys.exit("it is evaluated")
MetricsWriter.log = logged
"""
ASKED_WITHIN_EVALUATION = """
import loopcoder.train
from loopcoder.train import validation
losses = validation.losses
def asked(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)
    return losses(*args, **kwargs)
validation.losses = asked
"""
ASKED_WITHIN_SAMPLES = """
import loopcoder.train
from loopcoder.train import generation
next_logits, calls = generation._next_logits, []
def asked(*args):
    calls.append(os.kill(os.getpid(), signal.SIGTERM))
    assert len(calls) == 1, "it goes on"
    return next_logits(*args)
generation._next_logits = asked
"""
NO_MORE_DATA = """
import time
import loopcoder.train
from loopcoder.data import loader
step_data = loader.step_data
def slow(config, corpus, position, *rest):
    if position.step == 3:
        run_dir = next(a.removeprefix("run_dir=") for a in sys.argv if a.startswith("run_dir="))
        while open(run_dir + "/metrics.jsonl").read().count("}") < 3:
            time.sleep(0.1)
        time.sleep(1)
        print("asked at", time.time(), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3600)
    return step_data(config, corpus, position, *rest)
loader.step_data = slow
"""


@pytest.fixture
def patched(documents: Path, environment: dict[str, str], tmp_path: Path) -> Callable[..., object]:  # noqa: F811
    """Start `loopcoder train` after some lines of Python; the corpus is there already."""

    def run(code: str, run_dir: Path, *overrides: str) -> subprocess.Popen[str]:
        main = "from loopcoder.cli.main import main\nsys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", f"import os, signal, sys\n{code}\n{main}", "train"]
        return subprocess.Popen(
            [*command, *SMALL, f"path={documents}", f"run_dir={run_dir}", *overrides],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return run


@pytest.fixture(scope="module")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    finish(start(run_dir, *EVALUATED))
    return run_dir


def merged(run_dir: Path) -> list[dict[str, object]]:
    wall = ("time", "step_time_s", "data_wait_s", "tokens_per_s", "memory_bytes")
    keep = {key for line in curve(run_dir) for key in line}
    records = merge_by_step(read_metrics(run_dir / "metrics.jsonl"))
    return [{k: v for k, v in r.items() if k in keep and k not in wall} for r in records]


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("code", "step"),
    one_of(
        [
            (ASKED_BEFORE_EVALUATION, 4),
            (ASKED_BEFORE_EVALUATION, 6),
            (ASKED_WITHIN_EVALUATION, 4),
            (ASKED_WITHIN_SAMPLES, 4),
        ]
    ),
)
def test_an_evaluation_is_put_off_and_made_up(
    patched: Callable[..., subprocess.Popen[str]],
    start: Start,  # noqa: F811
    whole: Path,
    tmp_path: Path,
    code: str,
    step: int,
) -> None:
    """Before its last step, and after it: the evaluation at the end is not lost either."""
    run_dir = tmp_path / "run"
    output = finish(patched(code.replace("STEP", str(step)), run_dir, *EVALUATED), code=75)
    assert f"stopped after step {step} of 6" in output
    assert checkpoints.complete(run_dir / "checkpoints")[-1].step == step
    finish(start(run_dir, *EVALUATED))
    assert merged(run_dir) == merged(whole)
    samples = "samples.jsonl"
    assert (run_dir / samples).read_text() == (whole / samples).read_text()
    kinds = [json.loads(line)["kind"] for line in (run_dir / "events.jsonl").open()]
    assert "evaluation_put_off" in kinds and "run_done" in kinds


@pytest.mark.chaos
def test_data_that_does_not_come_is_not_waited_for(
    patched: Callable[..., subprocess.Popen[str]],
    start: Start,  # noqa: F811
    whole: Path,
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    output = finish(patched(NO_MORE_DATA, run_dir, *EVALUATED), code=75)
    asked = float(re.findall(r"asked at ([0-9.]+)", output)[0])
    assert time.time() - asked < LIMIT_S
    assert "stopped after step 3 of 6" in output
    finish(start(run_dir, *EVALUATED))
    assert merged(run_dir) == merged(whole)


@pytest.mark.chaos
@pytest.mark.parametrize("number", one_of(SIGNALS))
def test_the_whole_group_is_asked_while_a_save_is_under_way(
    documents: Path,  # noqa: F811
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    """The processes that write hear it too."""
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "loopcoder", "train", *SMALL, f"path={documents}"]
    options = ["train.max_steps=400", "checkpoint.interval=1", "checkpoint.async_save=true"]
    process = subprocess.Popen(
        [*command, f"run_dir={run_dir}", *options],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for_step(process, run_dir, 3)
    began = time.monotonic()
    os.killpg(process.pid, number)
    output = finish(process, code=75)
    assert time.monotonic() - began < LIMIT_S
    stopped = read_metrics(run_dir / "metrics.jsonl")[-1]["step"]
    assert f"stopped after step {stopped} of 400" in output
    newest = checkpoints.complete(run_dir / "checkpoints")[-1]
    assert newest.step == stopped
    assert not list(checkpoints.faults(newest, "hash"))


@pytest.mark.chaos
@pytest.mark.parametrize("number", one_of(SIGNALS))
def test_a_rank_that_waits_for_the_others_to_come(
    documents: Path,  # noqa: F811
    environment: dict[str, str],  # noqa: F811
    start: Start,  # noqa: F811
    whole: Path,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    """Rank 0 is not there: connecting to it is a system call in which Python hears nothing."""
    world = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "loopcoder", "train", *SMALL, f"path={documents}"),
            *(f"run_dir={tmp_path / 'run'}", "parallel.report_after_s=1"),
        ],
        cwd=tmp_path,
        env=environment | world | {"MASTER_PORT": "9"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    for line in process.stderr:
        if "rank 1: " in line and "in the start of step 0" in line:
            break
    began = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 75
    assert time.monotonic() - began < LIMIT_S / 2
