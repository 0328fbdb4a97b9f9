"""A run with an objective of its own: what it records, and that it goes on where it was."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from loopcoder.checkpoint import format as checkpoints
from loopcoder.config.compose import load_config
from loopcoder.metrics.writer import read_metrics
from loopcoder.model.step_objective import loops_of_step
from tests.train.conftest import Start, finish

OVERRIDES = [
    "model.num_loops=3",
    "train.max_steps=8",
    "checkpoint.interval=4",
    "optim.schedule.kind=constant",
    "logging.progress=false",
    "logging.loop_gradients=true",
    "objective.exit=true",
    "objective.loop_count=uniform",
]
OF_THE_CLOCK = ("time", "goodput", "memory_bytes")


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """Return what a run has recorded of every step, but for what depends on the clock."""
    return [
        {
            k: v
            for k, v in line.items()
            if k not in OF_THE_CLOCK
            and not k.startswith(("compute_s", "tokens_per_s"))
            and not k.endswith("_s")
        }
        for line in read_metrics(run_dir / "metrics.jsonl")
    ]


@pytest.mark.dist_full
def test_a_run_of_drawn_loops_with_an_exit_gate(start: Start, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # a seed of which the first steps draw different numbers, and those after the checkpoint as well
    finish(start(run_dir, *OVERRIDES, "seed=0"))
    whole = lines(run_dir)
    config = load_config(run_dir / "config.yaml")
    drawn = [line["loops"] for line in whole]
    assert drawn == [loops_of_step(config, step) for step in range(1, 9)]
    assert len(set(drawn[:4])) > 1 and len(set(drawn[4:])) > 1 and 1 in drawn
    for line in whole:
        loops = line["loops"]
        of_loops = [line[f"loss/loop{r}"] for r in range(loops)]
        shares = [line[f"exit/loop{r}"] for r in range(loops)]
        assert f"loss/loop{loops}" not in line and f"grad_norm/loop{loops}" not in line
        assert line["loss"] == pytest.approx(of_loops[-1])
        assert sum(shares) == pytest.approx(1)
        assert 0 <= line["exit/entropy"] <= math.log(loops) + 1e-6
        if line["step"] == 1:  # the gate starts at one half, for all tokens
            expected = [0.5 ** min(r + 1, loops - 1) for r in range(loops)]
            assert shares == pytest.approx(expected)
            mean = sum(p * x for p, x in zip(shares, of_loops, strict=True))
            assert line["objective"] == pytest.approx(mean - 0.1 * line["exit/entropy"])
    assert "val/loss/loop2" in whole[-1]  # all loops, whatever the last step ran

    # taken back to step 4, the same curve bit for bit, and the same weights
    newest = checkpoints.step_folder(run_dir, 8)
    shards = json.loads((newest / "digest.json").read_text())
    (newest / checkpoints.MANIFEST).unlink()
    finish(start(run_dir, *OVERRIDES, "seed=0"))
    assert lines(run_dir) == whole
    assert json.loads((newest / "digest.json").read_text()) == shards
