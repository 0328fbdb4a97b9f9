"""A sweep that Optuna decides: each trial once, and what it came to is kept."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from launch.sweep.places import Places
from launch.sweep.run import sweep
from launch.sweep.search import Search
from loopcoder.backends import Backends
from loopcoder.cli.main import main
from loopcoder.errors import InputError
from tests.launch.test_sweep import Runs

CPU = Backends()
LR = "optim.lr=tag(log,interval(1e-5,1e-1))"


class Quadratic(Runs):
    """Each run ends at the distance of its rate from 1e-3, in powers of ten."""

    def train(self, point: Any) -> int:
        code = super().train(point)
        file = point.run_dir / "metrics.jsonl"
        loss = abs(math.log10(point.config.optim.lr) + 3) + 1
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines[-1]["val/loss"] = loss
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return code


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Quadratic:
    return Quadratic(monkeypatch)


def search(folder: Path, *overrides: str, trials: int = 12) -> tuple[list[str], Search]:
    command = [*(overrides or [LR]), "train.max_steps=2", "optim.min_lr=0", f"run_dir={folder}"]
    return command, Search(command, None, CPU, trials=trials, minimise="val/loss")


@pytest.mark.dist_full
def test_a_search_finds_what_is_low_and_goes_on(runs: Quadratic, tmp_path: Path) -> None:
    command, found = search(tmp_path, trials=8)
    assert sweep(command, None, CPU, search=found).code == 0
    assert len(runs.started) == len(set(runs.started)) == 8
    rates = [float(label.rpartition("=")[2]) for label in runs.started]
    assert all(1e-5 <= rate <= 1e-1 for rate in rates) and len(set(rates)) == 8
    # more of them: the first are kept
    command, found = search(tmp_path, trials=20)
    done = sweep(command, None, CPU, search=found)
    assert (done.code, len(done.points), len(runs.started)) == (0, 20, 20)
    assert len(set(runs.started)) == 20
    best = min(abs(math.log10(point.config.optim.lr) + 3) for point in done.points)
    assert f"val/loss {best + 1:.4f} with optim.lr=" in (found.best() or "")
    assert best < 0.5


def test_what_is_interrupted_is_continued_and_what_failed_is_not(
    runs: Quadratic, tmp_path: Path
) -> None:
    """75 leaves a trial open; 1 is told, and the sweep goes on."""
    command, found = search(tmp_path)
    ends = iter([0, 1, 75])
    runs.codes = _Codes(ends)
    runs.last_event = "run_starts"
    assert sweep(command, None, CPU, search=found).code == 75
    first = list(runs.started)
    runs.codes = {}
    command, found = search(tmp_path)
    assert sweep(command, None, CPU, search=found).code == 0
    again = runs.started[len(first) :]
    assert again[0] == first[2] and first[1] not in again and first[0] not in again
    assert len(set(runs.started)) == 12


class _Codes(dict[str, int]):
    def __init__(self, ends: Any):
        super().__init__()
        self._ends = ends

    def get(self, _: str, default: Any = 0) -> Any:
        return next(self._ends, default)


@pytest.mark.dist_full
def test_several_at_once(runs: Quadratic, tmp_path: Path) -> None:
    command, found = search(tmp_path, "model.num_loops=1,2,3", "seed=range(1,9,2)", trials=7)
    done = sweep(
        command, None, CPU, places=lambda _: Places([], 3), watch=lambda *_: None, search=found
    )
    assert done.code == 0 and len(done.points) == 7
    assert {point.config.model.num_loops for point in done.points} <= {1, 2, 3}
    assert {point.config.seed for point in done.points} <= {1, 3, 5, 7}


@pytest.mark.dist_full
def test_values_that_cannot_be_trained_are_passed(
    runs: Quadratic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, found = search(tmp_path, "train.micro_batch_size=1,3", LR, trials=10)
    done = sweep(command, None, CPU, search=found)
    said = capsys.readouterr().out.count("not tried")
    assert len(done.points) == 10 - said and said > 0
    assert {point.config.train.micro_batch_size for point in done.points} == {1}
    command, found = search(tmp_path / "none", "train.micro_batch_size=3", LR, trials=3)
    with pytest.raises(InputError, match="micro_batch_size"):
        sweep(command, None, CPU, search=found)


def test_a_full_disk_costs_no_trial(runs: Quadratic, tmp_path: Path) -> None:
    """The sweep stops, and the trial goes on when there is room."""
    command, found = search(tmp_path, trials=4)
    runs.codes, runs.last_event = _Codes(iter([0, 76])), "run_starts"
    assert sweep(command, None, CPU, search=found).code == 76
    stopped = runs.started[-1]
    runs.codes = {}
    command, found = search(tmp_path, trials=4)
    assert sweep(command, None, CPU, search=found).code == 0
    assert runs.started[2:3] == [stopped] and len(set(runs.started)) == 4


@pytest.mark.dist_full
def test_another_search_in_one_folder_is_refused(runs: Quadratic, tmp_path: Path) -> None:
    command, found = search(tmp_path, trials=2)
    sweep(command, None, CPU, search=found)
    for other in (["optim.lr=interval(1e-5,1e-1)"], [LR, "seed=1,2"]):
        command, found = search(tmp_path, *other, trials=4)
        with pytest.raises(InputError, match="ANOTHER_FOLDER"):
            sweep(command, None, CPU, search=found)
    command = [LR, "train.max_steps=2", "optim.min_lr=0", f"run_dir={tmp_path}"]
    found = Search(command, None, CPU, trials=4, minimise="loss")
    with pytest.raises(InputError, match="for a low val/loss"):
        sweep(command, None, CPU, search=found)
    for changed in ("train.max_steps=3", "seed=5"):
        command = [LR, "train.max_steps=2", "optim.min_lr=0", f"run_dir={tmp_path}", changed]
        found = Search(command, None, CPU, trials=4, minimise="val/loss")
        with pytest.raises(InputError, match="settings differ"):
            sweep(command, None, CPU, search=found)


def test_a_field_that_no_run_has(runs: Quadratic, tmp_path: Path) -> None:
    """It is said after the first trial, not after all."""
    command = [LR, "train.max_steps=2", "optim.min_lr=0", f"run_dir={tmp_path}"]
    found = Search(command, None, CPU, trials=4, minimise="val/los")
    with pytest.raises(InputError, match="val/loss"):
        sweep(command, None, CPU, search=found)
    assert len(runs.started) == 1
    # with the right one the same folder goes on, and the trial counts
    found = Search(command, None, CPU, trials=2, minimise="val/loss")
    assert sweep(command, None, CPU, search=found).code == 0
    assert len(runs.started) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sweep.trials=3", "sweep.match=flops", LR], "no first point"),
        (["sweep.trials=3", "optim.lr=tag(log,interval(0.0,1.0))"], "low"),
        (["sweep.trials=3", "seed=range(4,1,-1)"], "must hold"),
        (["sweep.trials=3", "optim.lr=interval(1e-2,1e-4)"], "choices, ranges of whole numbers"),
        (["sweep.trials=3", "model.num_loops=2"], "no field has several values"),
    ],
)
def test_what_cannot_be_searched(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *arguments, f"run_dir={tmp_path / 'sweep'}"]) == 3
    assert says in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_jobs_are_not_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["launch", "slurm", "gpus_per_node=0", "sweep", "sweep.trials=3", LR]
    assert main([*command, f"run_dir={tmp_path / 'sweep'}"]) == 3
    assert "all at once" in capsys.readouterr().err
