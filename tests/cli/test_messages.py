"""The last words: one line, once, and no traceback of what is no fault of the program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loopcoder.cli import main as cli
from loopcoder.errors import InputError, Preempted, Rewound, TrainingDiverged
from tests.cli.conftest import RANKS_SHARE, Loop

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}


def words_of(
    loop: Loop, rank: int, outcome: Any, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> str:
    """What rank `rank` of two prints when the train loop ends so."""
    launcher = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank}
    for name, value in launcher.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("loopcoder.cli.messages._RANK_0_FIRST_S", 0.0)
    loop.outcome = outcome
    cli.main(["train", "train.micro_batch_size=2"])
    return capsys.readouterr().err


SAME = [
    Preempted("stopped after step 3"),
    Rewound("the run goes back to step 4"),
    TrainingDiverged("nan"),
    InputError.of("a", "b", "c"),
    KeyboardInterrupt("a second Ctrl-C"),
]


@pytest.mark.parametrize("outcome", SAME)
def test_ranks_of_torchrun_say_the_same_once(
    loop: Loop, outcome: Any, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv(RANKS_SHARE, str(tmp_path / "0" / "error.json"))
    assert str(outcome) in words_of(loop, 0, outcome, monkeypatch, capsys)
    assert words_of(loop, 1, outcome, monkeypatch, capsys) == ""
    other = InputError.of("another fact", "b", "c")
    assert "rank 1: another fact\n    why: b" in words_of(loop, 1, other, monkeypatch, capsys)
    # torchrun ended it because of the others
    assert words_of(loop, 1, Preempted("SIGTERM before"), monkeypatch, capsys) == ""


def test_a_lost_peer_is_no_fault_of_its_own(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(RANKS_SHARE, str(tmp_path / "0" / "error.json"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    lost = RuntimeError("Connection closed by peer")
    assert "Traceback" in words_of(loop, 1, lost, monkeypatch, capsys)
    words_of(loop, 0, InputError.of("a", "b", "c"), monkeypatch, capsys)
    assert words_of(loop, 1, lost, monkeypatch, capsys) == ""


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_peer_that_was_killed_without_words(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    left: int,
) -> None:  # fmt: skip
    """Its SIGTERM from torchrun came while the loop was still closing its files."""
    states = ["running"] * (1 + left) + ["zombie"] * (3 - left)
    workers = [SimpleNamespace(status=lambda state=state: state) for state in states]
    parent = SimpleNamespace(children=lambda: workers)
    monkeypatch.setattr("psutil.Process", lambda pid: parent)
    monkeypatch.setenv(RANKS_SHARE, str(tmp_path / "0" / "error.json"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    words = words_of(loop, 0, RuntimeError("Connection reset by peer"), monkeypatch, capsys)
    assert ("Traceback" in words) == (left == 2)


@pytest.mark.parametrize("outcome", SAME)
def test_without_torchrun_the_others_are_brief(
    loop: Loop, outcome: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    brief = "loopcoder: rank 1: a\n" if isinstance(outcome, InputError) else ""
    assert words_of(loop, 1, outcome, monkeypatch, capsys) == brief


def test_a_ctrl_c_is_one_line(loop: Loop, capsys: pytest.CaptureFixture[str]) -> None:
    loop.outcome = KeyboardInterrupt()
    assert cli.main(["train"]) == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert "Ctrl-C" in line


def in_folder(
    folder: Path, *arguments: str, before: str = "", **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m loopcoder` in a folder; `before` is done at Python's start."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(before)
    return subprocess.run(
        [sys.executable, "-m", "loopcoder", *arguments], cwd=folder, check=False,
        env=ENVIRONMENT | {"PYTHONPATH": f"{site}:{REPOSITORY}"} | environ,
        capture_output=True, text=True,
    )  # fmt: skip


AT_IMPORT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "hydra":
            os.kill(os.getpid(), signal.{})
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_during_the_imports_is_one_line(tmp_path: Path, name: str) -> None:
    done = in_folder(tmp_path, "help", before=AT_IMPORT.format(name))
    assert done.returncode == 75
    shown = "Ctrl-C" if name == "SIGINT" else name
    assert done.stderr == f"loopcoder: {shown} before anything was done\n"


def test_the_working_folder_hides_no_package(tmp_path: Path) -> None:
    for name in ("launch", "data_pipeline"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not ours')")
    done = in_folder(tmp_path, "help")
    assert (done.returncode, done.stderr) == (0, "")
