"""A sweep runs in order or side by side, and is continued by the same command."""

import errno
import json
import random
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from launch.sweep import run as sweep_module
from launch.sweep.ledger import is_finished
from launch.sweep.places import Places, places
from launch.sweep.points import Point, points
from launch.sweep.processes import Running
from launch.sweep.run import sweep
from loopcoder.backends import Backends
from loopcoder.cli.main import main
from loopcoder.errors import InputError
from loopcoder.storage.files import missed_within
from loopcoder.storage.lock import hold, is_held
from tests.train.conftest import (  # noqa: F401
    SMALL,
    Start,
    documents,
    environment,
    finish,
    start,
)
from tests.train.test_resume import curve, wait_for_step

CPU = Backends()


class Ended:
    """Stands for a process that has ended."""

    pid = 0

    def __init__(self, code: int):
        self._code = code

    def poll(self) -> int:
        return self._code


class Runs:
    """Stands for the training processes: each point writes metrics and ends as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.started: list[str] = []
        self.codes: dict[str, int] = {}
        self.last_event = "run_diverged"
        self.loss = random.uniform(1, 5)
        monkeypatch.setattr(sweep_module, "start_point", self.start)
        monkeypatch.delenv("RANK", raising=False)

    def start(self, point: Point, *_: Any, **__: Any) -> Running:
        return Running(point, cast(Any, Ended(self.train(point))), [])

    def train(self, point: Point) -> int:
        self.started.append(point.label)
        code = self.codes.get(point.label, 0)
        point.run_dir.mkdir(parents=True, exist_ok=True)
        steps = point.config.train.max_steps if code == 0 else 1
        lines = [
            {"step": n, "loss": self.loss, "tokens_per_s": 100.0 * n} for n in range(1, steps + 1)
        ]
        lines.append(
            {
                "step": steps,
                "tokens": 9,
                "val/loss": 2.5,
                "val/loss/code": 2.25,
                "val/loss_loop0": 9,
            }
        )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (point.run_dir / "metrics.jsonl").write_text(text)
        with (point.run_dir / "events.jsonl").open("a") as events:
            for kind in ("run_started", self.last_event if code else "run_done"):
                events.write(json.dumps({"kind": kind}) + "\n")
        return code


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


@pytest.mark.dist_full
def test_a_sweep_reports_and_is_not_run_twice(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "-m", "model.num_loops=1,2", "train.max_steps=3", f"run_dir={tmp_path}"]
    assert main(command) == 0
    assert runs.started == ["model.num_loops=1", "model.num_loops=2"]
    rows = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert [r["loops"] for r in rows] == [1, 2]
    assert rows[0]["loss"] == pytest.approx(runs.loss)
    assert rows[0]["val"] == {"val/loss": 2.5, "val/loss/code": 2.25}
    assert (rows[0]["tokens_per_s"], rows[0]["steps"]) == (200.0, 3)
    assert "| model.num_loops=2 | 2     | 3" in (tmp_path / "sweep.md").read_text()

    capsys.readouterr()
    assert main(command) == 0
    assert len(runs.started) == 2
    assert capsys.readouterr().out.count("done before") == 2

    # One that ended badly, or early, runs again.
    (tmp_path / "00_num_loops=1" / "metrics.jsonl").write_text('{"step": 2, "loss": 1}\n')
    assert main(command) == 0
    assert runs.started[2:] == ["model.num_loops=1"]


def test_finished_points_of_other_settings_are_refused(runs: Runs, tmp_path: Path) -> None:
    """Their results passed for those of the settings that were asked for."""
    command = ["seed=1,2", "train.max_steps=2", f"run_dir={tmp_path}"]
    sweep(command, None, CPU)
    with pytest.raises(InputError, match="has a finished run of other settings"):
        sweep([*command, "optim.lr=1e-3"], None, CPU)
    assert len(runs.started) == 2
    assert sweep([*command, "logging.interval=7"], None, CPU).code == 0
    assert len(runs.started) == 2


def test_a_failing_point_does_not_stop_the_others(runs: Runs, tmp_path: Path) -> None:
    command = ["seed=1,2,3", "train.max_steps=2", f"run_dir={tmp_path}"]
    runs.codes = {"seed=2": 76}
    assert sweep(command, None, CPU).code == 76
    assert runs.started == ["seed=1", "seed=2", "seed=3"]
    ledger = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [line["exit_code"] for line in ledger] == [0, 76, 0]
    runs.codes = {}
    done = sweep(command, None, CPU)
    assert (done.code, done.exit_codes) == (0, [0, 0, 0])
    assert runs.started[3:] == ["seed=2"]


def test_points_that_a_killed_sweep_left_are_waited_for(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They save when the driver is gone, and a point that starts meanwhile is refused."""
    folder = tmp_path / "01_seed=2"
    folder.mkdir()
    with ExitStack() as ending:
        ending.enter_context(hold(folder / ".lock", lambda _: None))
        looked: list[float] = []

        def sleep(seconds: float) -> None:
            assert not runs.started
            looked.append(seconds)
            if len(looked) == 3:
                ending.close()

        monkeypatch.setattr(sweep_module.time, "sleep", sleep)
        assert sweep(["seed=1,2", "train.max_steps=2", f"run_dir={tmp_path}"], None, CPU).code == 0
    assert "waits for seed=2: an earlier start left them" in capsys.readouterr().out
    assert runs.started == ["seed=1", "seed=2"]


@pytest.mark.parametrize(
    ("code", "says"),
    [(3, "the other points may have the same"), (75, "asked to stop"), (76, "full disk")],
)
def test_what_the_others_would_meet_too_ends_the_sweep(
    runs: Runs, tmp_path: Path, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad input, a stop, or a fault of the surroundings; the same command goes on from there."""
    runs.codes, runs.last_event = {"seed=2": code}, "run_starts"
    command = ["seed=1,2,3", "train.max_steps=2", f"run_dir={tmp_path}"]
    done = sweep(command, None, CPU)
    assert (done.code, done.exit_codes) == (code, [0, code, None])
    assert runs.started == ["seed=1", "seed=2"]
    error = capsys.readouterr().err
    assert f"[2/3] seed=2 ended with {code}; 1 of 3 runs is done, left: seed=2, seed=3\n" in error
    assert says in error and "same command" in error.partition("fix: ")[2]
    runs.codes = {}
    assert sweep(command, None, CPU).code == 0
    assert runs.started[2:] == ["seed=2", "seed=3"]


def test_a_point_that_diverged_before_may_meet_a_full_disk_now(runs: Runs, tmp_path: Path) -> None:
    command = ["seed=1,2", "train.max_steps=2", f"run_dir={tmp_path}"]
    runs.codes = {"seed=1": 76}
    assert sweep(command, None, CPU).exit_codes == [76, 0]
    runs.last_event = "note"
    assert sweep(command, None, CPU).exit_codes == [76, 0]  # of before
    assert runs.started == ["seed=1", "seed=2", "seed=1"]


def test_a_full_disk_under_the_ledger(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may leave a torn line, which the next one does not follow on."""
    command = ["seed=1,2", "train.max_steps=2", f"run_dir={tmp_path}"]
    really = Path.open

    def no_room(self: Path, *args: Any, **how: Any) -> Any:
        if self.name == "ledger.jsonl" and args:
            with really(self, "a") as file:
                file.write('{"torn')
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(self, *args, **how)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", no_room)
        assert sweep(command, None, CPU).code == 76
    assert runs.started == ["seed=1"]
    assert "no room to note" in capsys.readouterr().err
    assert sweep(command, None, CPU).exit_codes == [0, 0]
    assert runs.started == ["seed=1", "seed=1", "seed=2"]


def test_a_sweep_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match="whole sweep"):
        sweep(["seed=1,2"], None, CPU)


def test_a_torn_line_is_none(tmp_path: Path, runs: Runs) -> None:
    """What a killed run or sweep was just writing."""
    command = ["seed=1,2", "train.max_steps=2", f"run_dir={tmp_path}"]
    (point, _) = sweep(command, None, CPU).points
    ledger = tmp_path / "ledger.jsonl"
    for file in (ledger, point.run_dir / "metrics.jsonl"):
        with file.open("a") as appending:
            appending.write('{"step": 1, "exi')
        assert is_finished(point, ledger)
    ledger.unlink()
    assert not is_finished(point, ledger)


class Slow(Ended):
    """Stands for a process that takes a while, and ends with 75 when it is asked to stop."""

    def __init__(self, runs: Runs, point: Point, polls: int):
        super().__init__(-1)
        self._runs, self._point, self._polls = runs, point, polls

    def poll(self) -> int | None:  # type: ignore[override]
        self._polls -= 1
        return None if self._polls > 0 else self._runs.train(self._point)


def test_points_run_side_by_side(
    runs: Runs, tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of drawn length: never more than there are places, no GPU shared by more, each point once."""
    monkeypatch.setattr(sweep_module, "_LOOK_EVERY_S", 0.0)
    gpus, per_gpu = [str(n) for n in range(rng.randint(1, 4))], rng.randint(1, 2)
    at_once, most, running = rng.randint(2, 6), 0, list[Running]()

    def begin(point: Point, _: Any, first: Path, gpus: list[str], *, alone: bool) -> Running:
        assert not alone and first == found[0].run_dir and len(gpus) == 1
        running.append(Running(point, cast(Any, Slow(runs, point, rng.randint(1, 9))), gpus))
        return running[-1]

    def look(_: Any, now: Any, ledger: Path) -> None:
        nonlocal most
        most = max(most, len(now))
        used = [gpu for place in now.values() for gpu in place.removeprefix("GPU ").split(",")]
        assert all(used.count(gpu) <= per_gpu for gpu in used) and len(now) <= at_once

    monkeypatch.setattr(sweep_module, "start_point", begin)
    command = ["seed=range(1,12)", "train.max_steps=2", f"run_dir={tmp_path}"]
    found = points(command, None, CPU)[1]
    failing = rng.choice(found)
    runs.codes = {failing.label: 76}  # it diverges
    there = Places(gpus, at_once, per_gpu)
    done = sweep(command, None, CPU, places=lambda _: there, watch=look)
    assert sorted(runs.started) == sorted(p.label for p in found)
    assert done.code == 76 and done.exit_codes.count(0) == len(found) - 1
    assert most == min(at_once, len(gpus) * per_gpu)
    runs.started.clear()
    runs.codes = {}
    assert sweep(command, None, CPU, places=lambda _: there, watch=look).code == 0
    assert runs.started == [failing.label]


def test_no_more_points_start_after_what_all_would_meet(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep_module, "_LOOK_EVERY_S", 0.0)
    lengths = {"seed=1": 1, "seed=2": 5}

    def begin(point: Point, *_: Any, **__: Any) -> Running:
        return Running(point, cast(Any, Slow(runs, point, lengths[point.label])), [])

    monkeypatch.setattr(sweep_module, "start_point", begin)
    command = ["seed=1,2,3,4", "train.max_steps=2", f"run_dir={tmp_path}"]
    runs.codes = {"seed=1": 3}
    done = sweep(command, None, CPU, places=lambda _: Places([], 2))
    # the one that ran came to its end
    assert (done.code, done.exit_codes) == (3, [3, 0, None, None])
    assert "left: seed=1, seed=3, seed=4" in capsys.readouterr().err


def test_two_sweeps_in_one_folder_are_refused(runs: Runs, tmp_path: Path) -> None:
    command = ["seed=1,2", "train.max_steps=2", f"run_dir={tmp_path}"]
    with hold(tmp_path / ".lock", lambda _: None), pytest.raises(InputError, match="runs the sw"):
        sweep(command, None, CPU)
    assert runs.started == []
    assert sweep(command, None, CPU).code == 0


@pytest.mark.parametrize(
    ("count", "visible", "names"),
    [(2, "", ["0", "1"]), (2, "5,3", ["5", "3"]), (1, "GPU-a", ["GPU-a"])],
)
def test_places_are_the_visible_gpus(
    monkeypatch: pytest.MonkeyPatch, count: int, visible: str, names: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = places(None, 2, count, 1)
    assert (found.gpus, found.at_once) == (names, 2 * count)
    taken = [found.take(1) or [] for _ in range(2 * count)]
    assert sorted(gpu for gpus in taken for gpu in gpus) == sorted(names * 2)
    assert found.take(1) is None
    found.give_back(taken[0])
    assert found.take(1) == taken[0]
    with pytest.raises(InputError, match="of 4 processes"):
        places(None, 1, 3, 4)
    with pytest.raises(InputError, match=r"sweep\.per_gpu=2"):
        places(None, 2, 0, 1)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("sweep.at_once=0", ["sweep.at_once=0", "sweep.at_once=1"]),
        ("sweep.places=2", ["sweep.places=2", "at_once, per_gpu, match"]),
        ("sweep.match=loss", ["sweep.match=loss"]),
        ("--print-config", ["--print-config"]),
        ("train.max_stepz=3", ["train.max_stepz"]),
    ],
)
def test_wrong_settings_are_named_as_they_are_written(
    capsys: pytest.CaptureFixture[str], argument: str, says: list[str]
) -> None:
    assert main(["sweep", argument, "seed=1,2"]) == 3
    error = capsys.readouterr().err
    assert all(text in error for text in says)


@pytest.mark.chaos
def test_two_at_a_time_killed_and_continued(
    start: Start,  # noqa: F811
    documents: Path,  # noqa: F811
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    """The driver is killed (-9) and its points end with it; the same command goes on, and what
    comes out is that of each run by itself."""
    folder = tmp_path / "sweep"
    train = [o for o in SMALL if not o.startswith("parallel.nproc")]
    train += ["parallel.nproc_per_node=1", f"path={documents}", "train.max_steps=40"]
    train += ["checkpoint.interval=5", "eval.interval=20", f"run_dir={folder}"]
    command = [sys.executable, "-m", "loopcoder", "sweep", "sweep.at_once=2"]
    command += [*train, "model.num_loops=1,2,3"]
    how: dict[str, Any] = {
        "env": environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }
    first = subprocess.Popen(command, **how)
    runs = [folder / f"0{n - 1}_num_loops={n}" for n in (1, 2, 3)]
    for run in runs[:2]:
        wait_for_step(first, run, 8)
    first.kill()
    first.wait()
    for run in runs[:2]:
        assert missed_within(60, lambda run=run: True if is_held(run / ".lock") else None) is None
    # one of them may have come to its end before the other was at its eighth step
    killed = [run for run in runs[:2] if len(curve(run)) < 40]
    assert len(killed) < 2 or not runs[2].exists()
    output = finish(subprocess.Popen(command, **how))
    assert killed
    assert all("continues" in (run / "output.log").read_text() for run in killed)
    ledger = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert sorted(line["point"] for line in ledger) == sorted(run.name for run in runs)
    assert {line["exit_code"] for line in ledger} == {0}
    assert "| model.num_loops=3 |" in output and (folder / "sweep.png").exists()
    again = finish(subprocess.Popen(command, **how))
    assert again.count("done before") == 3
    alone = tmp_path / "alone"
    finish(start(alone, *train[:-1], "model.num_loops=2"))
    assert curve(alone) == curve(runs[1])
