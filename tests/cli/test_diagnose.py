"""What `loopcoder diagnose` is asked, before anything is loaded."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from loopcoder.cli import main as cli
from loopcoder.cli.diagnose import run
from loopcoder.errors import InputError
from tests.cli.run_dirs import run_dir
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
        (["checkpoint=R", "checkpoint=R"], "both called R", "diagnose.name=NAME"),
        (["checkpoint=R", "checkpoint=S", "diagnose.name=x"], "2 checkpoints", "leave it out"),
        (["checkpoint=R", "parallel.tp=3", "parallel.nproc_per_node=3"], "tp=3", "parallel.tp=1"),
        (["checkpoint=R", "parallel=tp2_sp"], "parallel.sp=true", "parallel.sp=false"),
        (["diagnosis=nowhere.json"], "nowhere.json", "loopcoder diagnose checkpoint=DIR"),
        (["diagnosis=x.json", "diagnose.loops=3"], "diagnose.*", "checkpoint=DIR"),
        (["--all", "checkpoint=R"], "--all", "leave it out"),
    ],
)
def test_wrong_input_says_what_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], fact: str, fix: str
) -> None:
    from loopcoder.cli.held_out import Asked

    monkeypatch.chdir(tmp_path)
    for name in "RS":
        run_dir(Path(name), saved=5)
    known = Asked.of

    def without_corpus(self: Asked, checkpoint: object) -> object:
        monkeypatch.setattr("loopcoder.cli.held_out.corpus_of_the_run", lambda *_: None)
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


def test_help_names_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diagnose", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "diagnose.rank_sequences" in shown and "{" not in shown
