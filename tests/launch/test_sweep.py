"""A sweep is expanded, checked, run in order, and continued by the same command."""

import errno
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch import sweep as sweep_module
from launch.sweep import Point, points, sweep
from loopcoder.backends import Backends
from loopcoder.cli.main import main
from loopcoder.errors import InputError

CPU = Backends()


def labels(*overrides: str) -> list[str]:
    return [point.label for point in points(overrides, None, CPU)[1]]


def test_choices_multiply_in_order() -> None:
    assert labels("model.num_loops=1,2", "train.max_steps=9", "seed=range(5,7)") == [
        "model.num_loops=1 seed=5",
        "model.num_loops=1 seed=6",
        "model.num_loops=2 seed=5",
        "model.num_loops=2 seed=6",
    ]


def test_a_glob_selects_presets() -> None:
    assert labels("optim=glob(adam_*)") == ["optim=adam_cosine", "optim=adam_wsd"]


VARIANTS = ["loops_1", "loops_2", "loops_3", "loops_4", "no_shift", "own_kv", "dense_2x"]


def test_a_preset_names_axes() -> None:
    assert labels("experiment=loop_sweep") == [
        f"seed={seed} variant={variant}" for seed in (1, 2, 3) for variant in VARIANTS
    ]


def test_the_command_line_replaces_an_axis_in_its_place() -> None:
    assert labels("experiment=loop_sweep", "variant=loops_1,own_kv", "seed=7,5") == [
        "seed=7 variant=loops_1",
        "seed=7 variant=own_kv",
        "seed=5 variant=loops_1",
        "seed=5 variant=own_kv",
    ]
    assert labels("experiment=loop_sweep", "seed=9") == [f"variant={name}" for name in VARIANTS]
    assert labels("seed=1", "seed=2,3") == ["seed=2", "seed=3"]


def test_the_points_of_a_seed_differ_in_the_model_alone() -> None:
    found = points(["experiment=loop_sweep", "seed=4", "model.num_layers=3"], None, CPU)[1]
    models = [p.config.model for p in found]
    assert [(m.num_loops, m.num_layers, m.shift, m.kv_sharing) for m in models] == [
        (1, 3, True, "first"),
        (2, 3, True, "first"),
        (3, 3, True, "first"),
        (4, 3, True, "first"),
        (2, 3, False, "first"),
        (2, 3, True, "own"),
        (1, 6, True, "first"),
    ]
    first = found[0].config
    same = dict(model=first.model, run_dir=first.run_dir)
    assert all(replace(p.config, **same) == first for p in found)
    assert found[0].config.seed == 4


def test_runs_of_several_seeds_share_a_point() -> None:
    found = points(["seed=1,2", "model.num_loops=1,2"], None, CPU)[1]
    assert [p.without_seed for p in found] == ["model.num_loops=1", "model.num_loops=2"] * 2
    assert {p.without_seed for p in points(["seed=1,2"], None, CPU)[1]} == {"seed=1,2"}


def test_further_seeds_leave_the_folders_of_the_first_ones() -> None:
    base = ["experiment=loop_sweep", "variant=loops_1,own_kv", "run_dir=x"]
    few, more = (points([*base, f"seed={s}"], None, CPU)[1] for s in ("1,2", "1,2,3"))
    assert [p.run_dir for p in more[: len(few)]] == [p.run_dir for p in few]


def test_axes_of_a_preset_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nhydra: {sweeper: {params: {optim.lr: '1e-3,2e-3', seed: 5}}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    folder, found = points(["experiment=mine"], tmp_path, CPU)
    assert [(p.label, p.config.seed) for p in found] == [
        ("optim.lr=0.001", 5),
        ("optim.lr=0.002", 5),
    ]
    (tmp_path / "experiment" / "mine.yaml").write_text(text.replace("2e-3", "3e-3"))
    assert points(["experiment=mine"], tmp_path, CPU)[0] != folder
    with pytest.raises(InputError, match="experiment=loop_sweep is a sweep over seed and variant"):
        points(["experiment=loop_sweep,plain_baseline"], None, CPU)  # whose axes would they be?


@pytest.mark.parametrize("overrides", [[], ["seed=3"], ["model.num_loops=[1,2]"]])
def test_a_sweep_of_nothing_is_refused(overrides: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        points(overrides, None, CPU)
    assert "-m, and no field has several values" in caught.value.problems[-1].fact


def test_points_have_their_overrides_config_and_folder(tmp_path: Path) -> None:
    folder, found = points(["seed=3", "model.num_loops=1,2", f"run_dir={tmp_path}/s"], None, CPU)
    assert folder == tmp_path / "s"
    assert [p.run_dir.name for p in found] == ["00_num_loops=1", "01_num_loops=2"]
    assert found[1].overrides == [
        "seed=3",
        "model.num_loops=2",
        f'run_dir="{folder}/01_num_loops=2"',
    ]
    assert (found[1].config.seed, found[1].config.model.num_loops) == (3, 2)


def test_the_folder_is_named_by_the_command() -> None:
    assert points(["seed=1,2"], None, CPU)[0] == points(["seed=1,2"], None, CPU)[0]
    assert points(["seed=1,2"], None, CPU)[0] != points(["seed=1,3"], None, CPU)[0]


def test_a_sweep_has_a_name_too() -> None:
    plain, _ = points(["seed=1,2"], None, CPU)
    for name in ("widths", "1.10", "007"):
        folder, found = points(["seed=1,2", f"name={name}"], None, CPU)
        assert folder == plain.with_name(f"{name}-{plain.name}")
        assert [p.label for p in found] == ["seed=1", "seed=2"]
    with pytest.raises(InputError, match="name=a/b"):
        points(["seed=1,2", "name=a/b"], None, CPU)
    assert points(["seed=1,2", "name=widths", "run_dir=x"], None, CPU)[0] == Path("x")
    _, found = points(["name=a,b"], None, CPU)
    assert [p.config.name for p in found] == ["a", "b"]


def test_every_point_is_checked_before_any_starts() -> None:
    with pytest.raises(InputError) as caught:
        points(["model.num_loops=0,1", "train.micro_batch_size=3,4"], None, CPU)
    facts = [p.fact for p in caught.value.problems]
    assert len(facts) == 3
    assert facts[0].startswith("[model.num_loops=0 train.micro_batch_size=3] model.num_loops=0")
    assert facts[2].startswith("[model.num_loops=1 train.micro_batch_size=3] train.global_batch")
    with pytest.raises(InputError, match="interval"):
        points(["optim.lr=interval(0,1)"], None, CPU)
    with pytest.raises(InputError, match="selects nothing"):
        points(["model=glob(gpt_*)"], None, CPU)


class Runs:
    """Stands for the training processes: each point writes metrics and ends as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.started: list[str] = []
        self.codes: dict[str, int] = {}
        self.last_event = "run_diverged"
        self.loss = random.uniform(1, 5)
        monkeypatch.setattr(sweep_module, "train_point", self.train)
        monkeypatch.delenv("RANK", raising=False)

    def train(self, point: Point, config_dir: Path | None, first: Path) -> int:
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
        assert sweep_module.is_finished(point, ledger)
    ledger.unlink()
    assert not sweep_module.is_finished(point, ledger)


def test_points_have_names_that_a_file_system_takes() -> None:
    values = ["a/b", "../up", "\u6f22" * 120, "x" * 300]
    for value in values:
        name = sweep_module._folder_name(f"path={value} seed=1")
        assert "/" not in name and len(name.encode()) <= 80
    folder, found = points([f"name={'n' * 250}", "seed=1,2"], None, CPU)
    assert len(folder.name) < 200 and [p.label for p in found] == ["seed=1", "seed=2"]


def test_each_point_copies_to_a_folder_of_its_own() -> None:
    found = points(["seed=1,2", "checkpoint.store=s3://bucket/sweep/"], None, CPU)[1]
    stores = [point.config.checkpoint.store for point in found]
    assert stores == [f"s3://bucket/sweep/{point.run_dir.name}" for point in found]
    assert len({*stores}) == 2
