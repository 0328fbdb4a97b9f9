"""What `loopcoder evaluate` is asked, before anything is loaded."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from loopcoder.cli import evaluate
from loopcoder.cli import main as cli
from loopcoder.cli.evaluate import as_asked, run, table
from loopcoder.config.compose import compose
from loopcoder.errors import InputError
from loopcoder.storage.signals import ASKS, name_of


@pytest.mark.parametrize("number", ASKS)
def test_a_signal_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    monkeypatch.setattr(evaluate, "checkpoints", lambda *_, **__: signal.raise_signal(number))
    assert cli.main(["evaluate", "checkpoint=DIR"]) == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert name_of(number) in line and "start it again" in line


@pytest.mark.parametrize(
    "arguments", [[], ["checkpoint=a", "checkpoint=b"], ["model.num_loops=2"], ["DIR"]]
)
def test_one_checkpoint_is_named(arguments: list[str]) -> None:
    with pytest.raises(InputError) as error:
        run(arguments)
    assert "checkpoint=DIR" in str(error.value) or "=" in error.value.problems[0].fix


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no complete checkpoint"):
        run([f"checkpoint={tmp_path}"])


def test_only_what_was_given_differs_from_the_run() -> None:
    trained = compose(["model.num_loops=2", "eval.per_loop=false", "data.seq_length=256"])
    given = ["model.num_loops=4", "eval.sequences_per_domain=9", "train.micro_batch_size=2"]
    config = as_asked(trained, compose(given), given)
    assert (config.model.num_loops, config.eval.sequences_per_domain) == (4, 9)
    assert config.train.micro_batch_size == 2
    assert not config.eval.per_loop and config.data == trained.data
    data = ["data=files", "path=/x", "data.mixture={code:1}"]
    assert as_asked(trained, compose(data), data).data.mixture == {"code": 1.0}


@pytest.mark.parametrize(
    "override", ["optim.lr=3", "model.hidden_size=64", "seed=2", "parallel=tp2"]
)
def test_what_would_change_nothing_is_refused(override: str) -> None:
    with pytest.raises(InputError, match="as its run was trained"):
        as_asked(compose([]), compose([]), [override])


def test_the_table_has_domains_and_loops() -> None:
    result = {"checkpoint": "/c", "step": 3, "num_loops": 2, "precision": "fp32", "corpus": "/d"}
    result |= {"val/loss": 3.0, "val/loss/loop0": 4.0, "val/loss/loop1": 3.0}
    result |= {"val/loss/code": 2.0, "val/bpb/code": 1.5}
    lines = table([result]).splitlines()
    assert "R = 2" in lines[0] and "4.0000 -> 3.0000" in lines[2]
    assert lines[3].split() == ["code", "2.0000", "1.5000"]
