"""What a finished run says on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loopcoder.metrics.summary import print_finished, print_summary


def summary(capsys: pytest.CaptureFixture[str], **changes: Any) -> list[str]:
    fields: dict[str, Any] = dict(
        steps=400, tokens=204_800, val_loss=4.5, unigram_entropy=6.25, plots=[]
    )
    print_summary(Path("/runs/a"), **(fields | changes))
    return capsys.readouterr().out.splitlines()


def test_the_loss_stands_beside_the_entropy(capsys: pytest.CaptureFixture[str]) -> None:
    lines = summary(capsys, plots=[Path("/runs/a/plots/loss.png")])
    assert lines[1:] == [
        "done: 400 steps, 204,800 tokens",
        "validation loss 4.500 nats per token, 1.75 under the unigram entropy 6.25",
        "  /runs/a/plots/loss.png",
        "  /runs/a/metrics.jsonl",
        "  /runs/a/checkpoints",
    ]
    assert "0.25 over the unigram entropy 6.25" in summary(capsys, val_loss=6.5)[2]


def test_without_an_evaluation_nothing_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    lines = summary(capsys, val_loss=None, unigram_entropy=None)
    assert not any("validation" in line for line in lines)
    assert len(lines) == 4


def test_a_run_that_had_nothing_to_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    print_finished(tmp_path, steps=60, max_steps=60)
    assert capsys.readouterr().out.startswith("\nalready finished: 60 steps\n")
    lines = ['{"step": 50, "val/loss": 5.5}', '{"step": 60, "val/loss": 4.5}', '{"step": 60}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    print_finished(tmp_path, steps=60, max_steps=20)
    output = capsys.readouterr().out
    assert "already finished: 60 steps, validation loss 4.500 nats per token" in output
    assert "train.max_steps=20 is less" in output
    assert f"run_dir={tmp_path} train.max_steps=120" in output
