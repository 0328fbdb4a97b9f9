"""A killed run continues from its newest checkpoint, and its curve is that of an uninterrupted one,
bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from loopcoder.checkpoint import format as checkpoints
from loopcoder.metrics.writer import read_metrics
from tests.train.conftest import Start, finish

LONG = ["train.max_steps=30", "checkpoint.interval=5", "eval.interval=10"]
COMPARED = [
    "loss",
    "loss/text",
    "loss/code",
    "grad_norm",
    "lr",
    "tokens",
    "val/loss",
    "val/loss/loop0",
]


def curve(run_dir: Path) -> list[dict[str, float]]:
    return [
        {k: r[k] for k in COMPARED if k in r} | {"step": r["step"]}
        for r in read_metrics(run_dir / "metrics.jsonl")
    ]


def wait_for_step(process: subprocess.Popen[str], run_dir: Path, step: int) -> None:
    """Return as soon as the run has logged a step; it may have ended since."""
    metrics, is_over = run_dir / "metrics.jsonl", False
    deadline = time.monotonic() + 200
    while not is_over:
        is_over = time.monotonic() > deadline or process.poll() is not None
        if metrics.exists() and len(metrics.read_bytes().splitlines()) >= step:
            return
        time.sleep(0.005)
    pytest.fail(f"step {step} was not reached: {process.communicate()[0]}")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uninterrupted") / "run"


@pytest.mark.chaos
def test_kill_and_stop(start: Start, tmp_path: Path, uninterrupted: Path, seed: int) -> None:
    finish(start(uninterrupted, *LONG))
    expected = curve(uninterrupted)
    assert [r["step"] for r in expected] == list(range(1, 31))
    assert expected[-1]["loss"] < expected[0]["loss"] - 0.3

    # kill -9 in the middle of a step, between two checkpoints
    run_dir = tmp_path / "run"
    process = start(run_dir, *LONG)
    wait_for_step(process, run_dir, random.Random(seed).choice([6, 7, 8, 9]))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    newest = checkpoints.complete(run_dir / "checkpoints")[-1].step  # 10 where the kill came late
    # what a kill in the middle of a save leaves: shards without a manifest
    torn = checkpoints.step_folder(run_dir, 25)
    torn.mkdir(parents=True)
    (torn / "__0_0.distcp").write_bytes(b"half")

    # asked to stop: saves the step it is in, and says that the same command continues
    process = start(run_dir, *LONG)
    wait_for_step(process, run_dir, newest + 7)
    process.send_signal(signal.SIGTERM)
    output = finish(process, code=75)
    assert "continues from" in output and f"step_{newest:08d}" in output
    assert "no manifest" in output
    stopped_at = read_metrics(run_dir / "metrics.jsonl")[-1]["step"]
    assert f"stopped after step {stopped_at} of 30" in output

    output = finish(start(run_dir, *LONG))
    assert f"step_{stopped_at:08d}" in output
    assert curve(run_dir) == expected
    kinds = [
        json.loads(line)["kind"] for line in (run_dir / "events.jsonl").read_text().splitlines()
    ]
    assert kinds.count("run_continues") == 2

    # the same command once more: nothing left to do, nothing changed
    before = (run_dir / "metrics.jsonl").read_bytes()
    finish(start(run_dir, *LONG))
    assert (run_dir / "metrics.jsonl").read_bytes() == before


@pytest.mark.dist_full
def test_background_saves_resume_alike(start: Start, tmp_path: Path) -> None:
    """Saved in the background, in bf16: the checkpoint is complete and continues like a
    saved-at-once one."""
    shared = ["train.max_steps=8", "precision=bf16", "train.deterministic=true"]
    finish(start(tmp_path / "whole", *shared))
    run_dir = tmp_path / "run"
    options = [
        *shared,
        "checkpoint.async_save=true",
        "checkpoint.interval=4",
    ]
    process = start(run_dir, *options)
    finish(process)
    newest = checkpoints.complete(run_dir / "checkpoints")
    assert [c.step for c in newest] == [4, 8]
    for checkpoint in newest:
        assert not list(checkpoints.faults(checkpoint, "hash"))
    # take the run back to step 4
    (newest[1].path / checkpoints.MANIFEST).unlink()
    finish(start(run_dir, *options))
    assert curve(run_dir) == curve(tmp_path / "whole")


@pytest.mark.dist_full
def test_branch_from_a_checkpoint(start: Start, tmp_path: Path) -> None:
    first = tmp_path / "first"
    finish(start(first, "train.max_steps=6", "checkpoint.interval=3"))
    branch = tmp_path / "branch"
    finish(start(branch, "train.max_steps=2", f"checkpoint.init_from={first}", "seed=5"))
    records = read_metrics(branch / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2]
    fresh = read_metrics(first / "metrics.jsonl")
    assert records[0]["loss"] < fresh[0]["loss"] - 0.05
    # one loop's weights in a two-loop model, and back: gates are new, or dropped, and both are said
    one = tmp_path / "one"
    assert "gates" in finish(
        start(one, "train.max_steps=2", f"checkpoint.init_from={first}", "model.num_loops=1")
    )
    two = finish(start(tmp_path / "two", "train.max_steps=1", f"checkpoint.init_from={one}"))
    assert "warning" in two and "gates" in two


@pytest.mark.dist_full
def test_a_run_keeps_its_corpus_whatever_becomes_of_its_sources(
    start: Start, documents: Path, tmp_path: Path
) -> None:
    """Touched, with more files, with none at all: the same curve. A rebuild says what is other."""
    source = tmp_path / "source"
    shutil.copytree(documents, source)
    own = f"path={source}"
    run_dir = tmp_path / "run"
    finish(start(run_dir, own, "train.max_steps=6", "checkpoint.interval=3"))
    whole = curve(run_dir)
    checkpoint = checkpoints.step_folder(run_dir, 3)
    for folder in (run_dir, checkpoint):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        assert len(np.load(folder / "token_bytes.npy")) == tokenizer.get_vocab_size()
    assert not list(checkpoints.faults(checkpoints.find(checkpoint), "hash"))

    def back_to_3() -> None:
        (checkpoints.step_folder(run_dir, 6) / checkpoints.MANIFEST).unlink()

    back_to_3()
    for i in range(10):
        (source / f"more{i}.py").write_text(f"def more_{i}():\n    return {i}\n" * 50)
    (source / "text1.txt").touch()
    output = finish(start(run_dir, own, "train.max_steps=6"))
    assert "keeps its corpus" in output and "data.rebuild=true" in output
    assert curve(run_dir) == whole

    back_to_3()
    shutil.rmtree(source)
    finish(start(run_dir, own, "train.max_steps=6"))
    assert curve(run_dir) == whole

    shutil.copytree(documents, source)
    (source / "other.txt").write_text("Something else to read. " * 400)
    output = finish(start(run_dir, own, "train.max_steps=8", "data.rebuild=true"), code=3)
    assert f"data.build.tokenizer={checkpoints.step_folder(run_dir, 6)}" in output
