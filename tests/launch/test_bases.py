"""Points of a sweep start from the runs of another that have their models."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from launch.sweep import run as sweep_module
from launch.sweep.bases import Bases
from launch.sweep.points import points
from loopcoder.backends import Backends
from loopcoder.cli.main import main
from loopcoder.config.compose import save_config
from loopcoder.errors import InputError
from tests.launch.test_sweep import Runs, runs  # noqa: F401

CPU = Backends()
TINY = ["data=sample", "train.max_steps=2"]


def other_sweep(folder: Path, *swept: str) -> list[Any]:
    found = points([*TINY, *swept, f"run_dir={folder}"], None, CPU)[1]
    for point in found:
        point.run_dir.mkdir(parents=True)
        save_config(point.config, point.run_dir / "config.yaml")
        end = {"step": point.config.train.max_steps}
        (point.run_dir / "metrics.jsonl").write_text(json.dumps(end) + "\n")
    return found


def starts(tmp_path: Path, base: Path, *swept: str) -> list[str | None]:
    own = [*TINY, "optim.min_lr=1e-6", *swept, f"run_dir={tmp_path / 'tuned'}"]
    found = points(own, None, CPU, start=Bases.of_folder(base).run_like)[1]
    return [point.config.checkpoint.init_from for point in found]


def test_each_starts_from_the_run_of_its_model_whatever_the_order(
    tmp_path: Path, rng: random.Random
) -> None:
    variants = ["loops_1", "loops_2", "loops_3", "no_shift", "own_kv", "dense_2x"]
    base = other_sweep(tmp_path / "base", f"variant={','.join(rng.sample(variants, 6))}")
    own = rng.sample(variants, 4)
    found = starts(tmp_path, tmp_path / "base", f"variant={','.join(own)}")
    there = {point.label.partition("=")[2]: str(point.run_dir) for point in base}
    assert found == [there[variant] for variant in own]


def test_of_several_of_a_model_it_is_the_one_with_the_seed(tmp_path: Path) -> None:
    other_sweep(tmp_path / "base", "variant=loops_1,loops_2", "seed=1,2")
    found = starts(tmp_path, tmp_path / "base", "variant=loops_2", "seed=2,1")
    assert [Path(str(place)).name for place in found] == [
        "03_variant=loops_2-seed=2",
        "02_variant=loops_2-seed=1",
    ]
    with pytest.raises(InputError, match="none of them has seed=3"):
        starts(tmp_path, tmp_path / "base", "variant=loops_2,loops_1", "seed=3")


def test_what_has_no_run_to_start_from_is_refused(tmp_path: Path) -> None:
    other_sweep(tmp_path / "base", "variant=loops_1,loops_2")
    with pytest.raises(InputError, match=r"3 loops of (.|\n)* its runs have 1, 2 loops"):
        starts(tmp_path, tmp_path / "base", "variant=loops_1,loops_3")
    with pytest.raises(InputError, match="has no runs"):
        starts(tmp_path, tmp_path / "nowhere", "variant=loops_1,loops_2")
    with pytest.raises(InputError, match=r"checkpoint\.init_from=x in a sweep"):
        starts(tmp_path, tmp_path / "base", "variant=loops_1,loops_2", "checkpoint.init_from=x")


def test_a_run_that_is_not_at_its_end_is_refused(tmp_path: Path) -> None:
    base = other_sweep(tmp_path / "base", "variant=loops_1,loops_2,loops_3")
    (base[1].run_dir / "metrics.jsonl").write_text('{"step": 1}\n')
    assert len(starts(tmp_path, tmp_path / "base", "variant=loops_1,loops_3")) == 2
    with pytest.raises(InputError, match=r"variant=loops_2 is at step 1 of 2"):
        starts(tmp_path, tmp_path / "base", "variant=loops_1,loops_2")


@pytest.mark.parametrize(
    "other",
    ["emb_scale=1.0", "hidden_scale=null", "norm_eps=1e-6", "residual_scale=0.5"],
)
def test_a_model_with_another_scale_is_another(tmp_path: Path, other: str) -> None:
    other_sweep(tmp_path / "base", "variant=loops_1,loops_2")
    with pytest.raises(InputError, match="no run in"):
        starts(tmp_path, tmp_path / "base", "variant=loops_1,loops_2", f"model.{other}")


def test_what_the_second_sweep_lacks_is_said_before_the_first_is_trained(
    runs: Runs,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chats = tmp_path / "chats.jsonl"
    command = ["sweep", "experiment=matched_sft", f"path={chats}", f"run_dir={tmp_path / 'runs'}"]
    assert main(command) == 3
    assert "chats.jsonl' does not exist" in capsys.readouterr().err
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}]
    chats.write_text(json.dumps({"messages": turns}) + "\n")
    tasks = ["sweep.tasks=local_none", f"path={chats}"]
    nowhere = main([*command, *tasks])
    assert nowhere == 3 and "local_none" in capsys.readouterr().err
    assert runs.started == [] and not (tmp_path / "runs").exists()


def test_the_first_sweep_shares_the_cache_and_has_a_store_of_its_own(
    runs: Runs,  # noqa: F811
    tmp_path: Path,
    preset: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {}

    def noted(point: Any, *_: Any, **__: Any) -> Any:
        given[point.run_dir.relative_to(tmp_path).as_posix()] = point.config
        return runs.start(point)

    monkeypatch.setattr(sweep_module, "start_point", noted)
    monkeypatch.setattr(sweep_module, "_refuse", lambda *_: None)
    command = ["sweep", "--config-dir", str(preset), "experiment=tuned", f"run_dir={tmp_path}"]
    command += [f"data.build.cache_dir={tmp_path}/cache", f"checkpoint.store=file://{tmp_path}/s"]
    assert main(command) == 0
    name = "01_variant=loops_2"
    base, own = given[f"before/{name}"], given[name]
    assert base.data.build.cache_dir == own.data.build.cache_dir == f"{tmp_path}/cache"
    assert base.checkpoint.store == f"file://{tmp_path}/s/before/{name}"
    assert own.checkpoint.store == f"file://{tmp_path}/s/{name}"


def test_the_table_is_there_whatever_becomes_of_the_evaluation(
    runs: Runs,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from loopcoder.cli import evaluate_tasks

    monkeypatch.setattr("loopcoder.cli.sweep.check_tasks", lambda *_: False)
    monkeypatch.setattr(sweep_module, "_refuse", lambda *_: None)
    fails = InputError.of("it fails", "why", "fix")

    def evaluated(overrides: list[str]) -> list[Any]:
        if fails is not None:
            raise fails
        return []

    monkeypatch.setattr(evaluate_tasks, "evaluate_tasks", evaluated)
    command = ["sweep", *TINY, "seed=1,2", "sweep.tasks=chat", f"run_dir={tmp_path}"]
    assert main(command) == 3
    table = (tmp_path / "sweep.md").read_text()
    assert "seed=1" in table and "| model |" not in table
    fails = None
    assert main(command) == 0
    assert (tmp_path / "sweep.md").read_text().startswith(table)
    assert "| model |" in (tmp_path / "sweep.md").read_text()


def test_a_job_for_each_point_leaves_what_comes_before_and_after_to_other_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["launch", "slurm", "sweep", *TINY, "seed=1,2", f"run_dir={tmp_path}"]
    assert main([*command, "sweep.tasks=chat"]) == 3
    said = capsys.readouterr().err
    assert "sweep.tasks=null" in said and "sweep.before" not in said and "init_from" not in said
    assert main([*command, "sweep.before=matched_base"]) == 3
    said = capsys.readouterr().err
    assert "init_from=ITS_FOLDER" in said and "sweep.tasks" not in said


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    """A folder of presets with a sweep that is tuned after another."""
    folder = tmp_path / "presets" / "experiment"
    folder.mkdir(parents=True)
    (folder / "tuned.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      variant: loops_1,loops_2\n"
        "      sweep.before: matched_base\noptim: {lr: 3e-5, min_lr: 0}\n"
    )
    return folder.parent


def test_what_is_trained_first(
    runs: Runs,  # noqa: F811
    tmp_path: Path,
    preset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One command trains both; what is given of model and seed counts for both, the rest for the
    second alone. A base that fails ends it, and the same command goes on from there."""
    folder, given = tmp_path / "runs", {}

    def noted(point: Any, *_: Any, **__: Any) -> Any:
        given[point.run_dir.relative_to(folder).as_posix()] = point.config
        return runs.start(point)

    monkeypatch.setattr(sweep_module, "start_point", noted)
    monkeypatch.setattr(sweep_module, "_refuse", lambda *_: None)  # nothing is really trained
    command = ["sweep", "--config-dir", str(preset), "experiment=tuned", "seed=7"]
    command += ["model.num_layers=2", "train.max_steps=3", "variant=loops_1,loops_2"]
    command += [f"run_dir={folder}"]
    runs.codes = {"variant=loops_2": 3}
    assert main(command) == 3
    assert list(given) == [f"before/0{n}_variant=loops_{n + 1}" for n in (0, 1)]
    runs.codes = {}
    assert main(command) == 0
    assert runs.started == [
        "variant=loops_1",
        "variant=loops_2",
        "variant=loops_2",
        "variant=loops_1",
        "variant=loops_2",
    ]
    for n in (0, 1):
        name = f"0{n}_variant=loops_{n + 1}"
        base, own = given[f"before/{name}"], given[name]
        assert own.checkpoint.init_from == str(folder / "before" / name)
        assert (base.seed, own.seed, base.model, own.model.num_layers) == (7, 7, own.model, 2)
        assert (base.train.max_steps, own.train.max_steps, own.optim.lr) == (400, 3, 3e-5)
    rows = json.loads((folder / "sweep.json").read_text())["runs"]
    assert [row["loops"] for row in rows] == [1, 2]
    assert capsys.readouterr().out.count("2 runs in") == 3


def test_settings_that_contradict_each_other(
    tmp_path: Path, preset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["sweep", "sweep.before=matched_base", "sweep.init_from=x", "seed=1,2"]
    assert main(both) == 3
    assert "the runs of one sweep" in capsys.readouterr().err
    search = ["sweep", "sweep.before=matched_base", "sweep.trials=3", "seed=1,2"]
    assert main(search) == 3
    assert "a search draws its points" in capsys.readouterr().err
    # a folder in place of what would be trained first
    own = [
        "sweep",
        "--config-dir",
        str(preset),
        "experiment=tuned",
        f"sweep.init_from={tmp_path}/no",
    ]
    assert main(own) == 3
    assert "has no runs" in capsys.readouterr().err


def test_what_says_how_tasks_are_run_goes_to_them(
    runs: Runs,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It was said to be no field of a run, and a model without conversations was found out when
    all were trained."""
    from loopcoder.cli import evaluate_tasks

    asked: list[str] = []
    monkeypatch.setattr(evaluate_tasks, "evaluate_tasks", lambda given: asked.extend(given) or [])
    command = ["sweep", *TINY, "seed=1,2", f"run_dir={tmp_path / 'runs'}"]
    assert main([*command, "sweep.tasks=chat"]) == 3
    assert "fix: chat.corpus=FOLDER" in capsys.readouterr().err and not runs.started
    assert main([*command, "chat.max_tokens=9"]) == 3
    assert "sweep.tasks=NAME" in capsys.readouterr().err and not runs.started
    assert main([*command, "sweep.tasks=chat", "chat.corpus=/nowhere"]) == 3
    assert "/nowhere" in capsys.readouterr().err and not runs.started
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "held_out.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "chat_template.jinja").write_text("")
    own = [f"chat.corpus={tmp_path}", "chat.max_tokens=9"]
    assert main([*command, "sweep.tasks=chat", *own]) == 0
    assert asked[-2:] == own and len(runs.started) == 2
