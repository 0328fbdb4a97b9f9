"""What `loopcoder diagnose` is asked, before anything is loaded."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loopcoder.backends import Backends
from loopcoder.cli import diagnose
from loopcoder.cli import main as cli
from loopcoder.cli.diagnose import run
from loopcoder.config.check import check_layout
from loopcoder.config.diagnosis import DiagnoseConfig
from loopcoder.errors import InputError
from tests.cli.run_dirs import checkpoint, run_dir
from tests.configs import small_config
from tests.diagnose.made_up import diagnosis


@pytest.mark.parametrize(
    ("arguments", "fact", "fix"),
    [
        ([], "loopcoder diagnose", "checkpoint=DIR"),
        (["runs/x"], "runs/x", "checkpoint=runs/x"),
        (["checkpoint="], "checkpoint=", "checkpoint=PATH"),
        (["checkpoint=R", "diagnose.sequences=0"], "diagnose.sequences=0", "diagnose.sequences="),
        (["checkpoint=R", "diagnose.sequence=5"], "diagnose.sequence", "diagnose.sequences=5"),
        (["checkpoint=R", "model.num_loops=3"], "model.num_loops", "diagnose.loops=N"),
        (["checkpoint=R", "optim.lr=1"], "optim.lr=1", "leave it out"),
        (["checkpoint=R", "output=a", "output=b"], "output=a output=b", "output=b"),
        (["checkpoint=nowhere"], "there is no folder nowhere", "loopcoder runs"),
        (["checkpoint=R", "checkpoint=R"], "both called R-5", "diagnose.name=NAME"),
        (["checkpoint=R", "checkpoint=S", "diagnose.name=x"], "2 checkpoints", "leave it out"),
        (["checkpoint=R", "parallel.tp=3", "parallel.nproc_per_node=3"], "tp=3", "parallel.tp=1"),
        (["checkpoint=R", "precision=fp8_tensorwise"], "fp8_tensorwise", "precision=bf16"),
        (["checkpoint=S", "checkpoint=one", "diagnose.loops=4"], "loops=4 of one/", "loops=1"),
        (["checkpoint=R", "diagnosis=nowhere.json"], "nowhere.json", "loopcoder diagnose"),
        (["checkpoint=R", "parallel=tp2_sp"], "parallel.sp=true", "parallel.sp=false"),
        (["diagnosis=nowhere.json"], "nowhere.json", "loopcoder diagnose checkpoint=DIR"),
        (["diagnosis=x.json", "diagnose.loops=3"], "diagnose.*", "checkpoint=DIR"),
        (["--all", "checkpoint=R"], "--all", "leave it out"),
    ],
)
def test_wrong_input_says_what_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], fact: str, fix: str
) -> None:
    from loopcoder.cli.asked import Asked

    monkeypatch.chdir(tmp_path)
    for name in "RS":
        run_dir(Path(name), saved=5)
    run_dir(Path("one"), "model.num_loops=1", saved=5)
    corpus = SimpleNamespace(domains=[], members=[], is_packed=False)
    known = Asked.of

    def without_corpus(self: Asked, checkpoint: object) -> object:
        monkeypatch.setattr("loopcoder.cli.asked.corpus_of_the_run", lambda *_: corpus)
        return known(self, checkpoint)  # type: ignore[arg-type]

    monkeypatch.setattr(Asked, "of", without_corpus)
    with pytest.raises(InputError) as caught:
        run(arguments)
    problem = caught.value.problems[0]
    assert fact in problem.fact and problem.why and fix in problem.fix, problem


def test_finished_diagnoses_are_compared(
    tmp_path: Path,
    rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from loopcoder.diagnose import report
    from loopcoder.diagnose.results import Diagnosis, write

    def written(diagnoses: list[Diagnosis], folder: Path) -> Path:
        assert [d.name for d in diagnoses] == ["one", "two"]
        return folder / "report.html"

    monkeypatch.setattr(report, "write_report", written)  # which takes seconds to draw

    files = []
    for name, loops in (("one", 1), ("two", 2)):
        files.append(tmp_path / f"{name}.json")
        write(files[-1], diagnosis(rng, name, loops))
    out = tmp_path / "out"
    assert cli.main(["diagnose", *(f"diagnosis={f}" for f in files), f"output={out}"]) == 0
    shown = capsys.readouterr()
    assert "one" in shown.out and "two" in shown.out and f"{out}/report.html" in shown.err


def test_two_of_one_name_are_told_apart_and_their_notes_are_printed(
    tmp_path: Path,
    rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from loopcoder.diagnose import report
    from loopcoder.diagnose.results import write

    monkeypatch.setattr(report, "write_report", lambda _, folder: folder / "report.html")
    files = []
    for step in (1000, 2000):
        files.append(tmp_path / f"{step}.json")
        write(files[-1], replace(diagnosis(rng, "same", 2), step=step, notes=[f"few at {step}"]))
    out = f"output={tmp_path / 'out'}"
    assert cli.main(["diagnose", *(f"diagnosis={f}" for f in files), out]) == 0
    shown = capsys.readouterr().out
    said = [line for line in shown.splitlines() if line.startswith("same, step ") and ": R" in line]
    assert len(said) == len(set(said)) == 2
    assert "  note: few at 1000\n" in shown and "loops are counted from 1" in shown


def test_help_names_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diagnose", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "diagnose.rank_sequences" in shown and "{" not in shown


def test_what_a_gpu_has_trained_is_measured_on_a_cpu() -> None:
    trained = small_config(dict(layer_spec="te", kernels="cuda", head_dim=64), "fp8_tensorwise")
    precision = replace(trained.precision, bf16_layers_at_start=1)
    faults = replace(trained.faults, replay_interval=10)
    trained = replace(trained, precision=precision, faults=faults)
    corpus: Any = SimpleNamespace(domains=["text", "code"])
    with pytest.raises(InputError, match="layer_spec=te"):
        check_layout(trained, 1, Backends())
    diagnose._check(trained, corpus, DiagnoseConfig(), 1, Backends())


def test_processes_are_handed_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(run_dir(tmp_path / "run", saved=5), 7)
    corpus = SimpleNamespace(domains=[], members=[], is_packed=False)
    monkeypatch.setattr("loopcoder.cli.asked.corpus_of_the_run", lambda *_: corpus)
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(diagnose, "start_workers", lambda *_: commands.append(_[2]) or 0)
    output = f"output={tmp_path / 'out'}"
    assert run([f"checkpoint={tmp_path / 'run'}", output, "parallel=tp2", "--json"]) == 0
    newest = f"checkpoint={tmp_path / 'run'}/checkpoints/step_00000007"
    assert commands == [("diagnose", output, "parallel=tp2", "--json", newest)]


@pytest.mark.parametrize("own", ["a", "b"])
def test_the_checkpoints_are_those_of_rank_0(monkeypatch: pytest.MonkeyPatch, own: str) -> None:
    from loopcoder.checkpoint import agreed

    told: list[object] = []
    monkeypatch.setattr(agreed, "of_rank_0", lambda _: ["a"])
    monkeypatch.setattr(agreed, "same_error_on_all", told.append)

    def subjects_of(places: Any) -> Any:
        return [("run", SimpleNamespace(place=place), None, None) for place in places]

    found = diagnose._agreed(subjects_of([own]), subjects_of)
    assert [subject[1].place for subject in found] == ["a"] and told == [None]
    error = InputError.of("a", "gone", "wait")

    def unseen(_: Any) -> Any:
        raise error

    diagnose._agreed(subjects_of(["b"]), unseen)
    assert told == [None, error]
