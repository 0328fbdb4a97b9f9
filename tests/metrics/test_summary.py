"""What a finished run says on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loopcoder.config.compose import compose
from loopcoder.metrics.goodput import Account
from loopcoder.metrics.summary import next_command, print_finished, print_summary


def summary(capsys: pytest.CaptureFixture[str], **changes: Any) -> list[str]:
    fields: dict[str, Any] = dict(
        steps=400,
        tokens=204_800,
        advice="try",
        val_loss=4.5,
        unigram_entropy=6.25,
        account=Account({"steps": 90, "start": 30}),
        plots=[],
    )
    print_summary(Path("/runs/a"), **(fields | changes))
    return capsys.readouterr().out.splitlines()


def test_the_loss_stands_beside_the_entropy(capsys: pytest.CaptureFixture[str]) -> None:
    lines = summary(capsys, plots=[Path("/runs/a/plots/loss.png")])
    assert lines[1:] == [
        "done: 400 steps, 204,800 tokens",
        "validation loss 4.500 nats per token, 1.75 under the unigram entropy 6.25",
        "time: 75.0% of 2m00s in steps that count; start 25.0%",
        "  /runs/a/plots/loss.png",
        "  /runs/a/metrics.jsonl",
        "  /runs/a/checkpoints",
        "next: try",
    ]
    assert "0.25 over the unigram entropy 6.25" in summary(capsys, val_loss=6.5)[2]


def test_without_an_evaluation_nothing_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    lines = summary(capsys, val_loss=None, unigram_entropy=None)
    assert not any("validation" in line for line in lines)
    assert len(lines) == 6


def test_no_advice_within_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert not any("next:" in line for line in summary(capsys, advice=None))


@pytest.mark.parametrize(
    ("overrides", "command"),
    [
        ([], "loopcoder train -m model.num_loops=2,3"),
        (
            ["checkpoint.store=s3://a/b", "checkpoint.store_keep=2"],
            "loopcoder train -m model.num_loops=2,3",
        ),
        (
            ["data=files", "path=/a b", "run_dir=runs/x", "optim.lr=1e-3"],
            "loopcoder train -m data=files 'path=/a b' optim.lr=1e-3 model.num_loops=2,3",
        ),
        (["model.num_loops=3", "name=mine"], "loopcoder train -m model.num_loops=3,4"),
        (["data.rebuild=true", "seed=3"], "loopcoder train -m seed=3 model.num_loops=2,3"),
        (
            [
                "checkpoint.init_from=/r/a",
                "checkpoint.init_optimizer=true",
                "+checkpoint.init_position=true",
                "checkpoint.keep=5",
            ],
            "loopcoder train -m checkpoint.keep=5 model.num_loops=2,3",
        ),
        (
            ["checkpoint.resume=require", "profile.trace_steps=[3]", "profile.memory_steps=[3]"],
            "loopcoder train -m model.num_loops=2,3",
        ),
    ],
)
def test_the_next_command_keeps_what_was_asked_for(overrides: list[str], command: str) -> None:
    assert next_command(compose(overrides), overrides).startswith(command + "  ")


@pytest.mark.parametrize(
    ("max_steps", "said"), [(60, "60 steps, "), (20, "past train.max_steps=20")]
)
def test_what_is_finished_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, max_steps: int, said: str
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 60, "val/loss": 4.5627}\n{"step": 60}\n')
    print_finished(tmp_path, 60, max_steps, planned=60)
    out = capsys.readouterr().out
    assert "already finished" in out and said in out and "4.5627" in out
    assert "train.max_steps=120" in out


@pytest.mark.parametrize(
    ("max_steps", "past"), [(840, ""), (200, ", which is past train.max_steps=200")]
)
def test_what_was_stopped_before_its_end_is_not_called_finished(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, max_steps: int, past: str
) -> None:
    print_finished(tmp_path, 840, max_steps, planned=2000)
    first, more = capsys.readouterr().out.splitlines()
    assert first == f"nothing to train: the run stands at step 840 of 2,000{past} ({tmp_path})"
    assert more.endswith("train.max_steps=2000")
