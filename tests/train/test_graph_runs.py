"""Whole runs with train.cuda_graphs: what they say, and that they train the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from loopcoder.errors import EXIT_BAD_INPUT
from tests.train.conftest import SMALL, Start, finish

STAGES = (
    "data.stages=[{until:2000,seq_length:32},{until:5000,rope_theta:20000},{}]",
    "train.batch_ramp={start:2,increment:2,samples:20}",
    "train.micro_batch_size=1",
    "train.global_batch_size=4",
)
"""Other lengths, bases of the positions and numbers of microbatches on the way."""


def losses(run_dir: Path) -> list[dict[str, Any]]:
    """Return what metrics.jsonl says of losses and norms."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    kinds = ("loss", "grad_norm", "val/", "lr", "step")
    return [
        {k: v for k, v in line.items() if k.startswith(kinds) and k != "step_time_s"}
        for line in lines
    ]


def test_a_run_of_graphs_trains_the_same(
    start: Start, environment: dict[str, str], documents: Path, tmp_path: Path
) -> None:
    """The same bits in every line, with stages, a ramp, evaluations and saves on the way, and with
    steps whose loops are measured."""
    options = [
        *STAGES,
        *("train.max_steps=40", "eval.interval=15", "checkpoint.interval=20"),
        *("logging.loop_losses=true", "logging.interval=5"),
    ]
    finish(start(tmp_path / "plain", *options))
    command = [sys.executable, "-m", "tests.train.stand_in_graphs", *SMALL, f"path={documents}"]
    done = subprocess.run(
        [*command, f"run_dir={tmp_path / 'graphs'}", *options],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "steps are stand-ins" in done.stdout
    assert done.stdout.count("CUDA graph of a step") >= 3
    assert losses(tmp_path / "graphs") == losses(tmp_path / "plain")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(start: Start, tmp_path: Path) -> None:
    said = finish(start(tmp_path / "auto", "train.max_steps=2", "train.cuda_graphs=auto"))
    assert "no CUDA graphs (train.cuda_graphs=auto): no GPU" in said
    said = finish(start(tmp_path / "on", "train.cuda_graphs=on"), EXIT_BAD_INPUT)
    assert "train.cuda_graphs=on, no GPU" in said and "fix: train.cuda_graphs=off" in said
    said = finish(start(tmp_path / "off", "train.max_steps=2"))
    assert "CUDA graph" not in said
    assert losses(tmp_path / "off") == losses(tmp_path / "auto")
