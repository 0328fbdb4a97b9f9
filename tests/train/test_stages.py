"""A run whose mixture and length are changed when it goes on, and that leaves samples out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loopcoder.metrics.writer import read_metrics
from tests.train.conftest import Start, finish

PACKED = ["data.reader=packed", "data.prefetch_steps=0"]


@pytest.mark.data_full
def test_what_is_changed_on_resuming_goes_on_where_the_domains_stood(
    start: Start, tmp_path: Path
) -> None:
    """Four steps of text and code, then code alone in shorter sequences, without two steps' worth
    of it."""
    run_dir = tmp_path / "run"
    finish(start(run_dir, "train.max_steps=4", *PACKED))
    stages = "data.stages=[{until:1024,mixture:{text:1,code:1}},{mixture:{code:1},seq_length:32}]"
    changed = [stages, "data.skip=[{step:6,steps:2}]", "train.max_steps=8"]
    output = finish(start(run_dir, *changed, *PACKED))
    assert "[data_stage] stage=1 step=5 text=data stage 2 of 2: code 1; sequences of" in output
    assert "sequences of 32 tokens; code goes on" in output
    assert "[samples_skipped] step=6 steps=2 stage=1 sample=4 samples=8" in output
    records = read_metrics(run_dir / "metrics.jsonl")
    assert [r["stage"] for r in records] == [0] * 4 + [1] * 4
    assert records[-1]["tokens"] == 4 * 4 * 64 + 4 * 4 * 32
    position = state(run_dir, 8)["position"]
    assert position["before"] == {"code": [[64, 8]], "text": [[64, 8]]}
    assert (position["sample"], position["samples"]) == (24, 32)
    assert [skipped["samples"] for skipped in position["skipped"]] == [8]
    kinds = [e["kind"] for e in read_metrics(run_dir / "events.jsonl")]
    assert kinds.count("data_stage") == kinds.count("samples_skipped") == 1


def state(run_dir: Path, step: int) -> dict[str, Any]:
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    content: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return content
