"""What a finished run says on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loopcoder.metrics.summary import print_summary


def summary(capsys: pytest.CaptureFixture[str], **changes: Any) -> list[str]:
    fields: dict[str, Any] = dict(
        steps=400, tokens=204_800, num_loops=2, val_loss=4.5, unigram_entropy=6.25, plots=[]
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
        "next: loopcoder train -m model.num_loops=2,3   (what does another loop bring?)",
    ]
    assert "0.25 over the unigram entropy 6.25" in summary(capsys, val_loss=6.5)[2]


def test_without_an_evaluation_nothing_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    lines = summary(capsys, val_loss=None, unigram_entropy=None)
    assert not any("validation" in line for line in lines)
    assert len(lines) == 5
