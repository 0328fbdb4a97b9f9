"""A run that met bad numbers goes back, and is then the run that left that data out from the start,
bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import loopcoder.train.loop as loop
from loopcoder.checkpoint import format as checkpoints
from loopcoder.checkpoint.rewind import REWINDS, Rewind, rewinds_of, with_rewinds
from loopcoder.cli.main import main
from loopcoder.errors import EXIT_NO_RETRY, EXIT_RETRY
from loopcoder.metrics.goodput import account_of, read_marks
from loopcoder.metrics.writer import read_metrics
from tests.train.conftest import SMALL

STEPS = [
    "train.max_steps=10",
    "checkpoint.interval=4",
    "checkpoint.keep=null",
    "eval.interval=null",
    "faults.bad_steps=2",
    "logging.progress=false",
    "data.prefetch_steps=0",
    "objective.loop_count=uniform",  # a step that is taken again draws the same
]
WORLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def alone(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> Iterator[pytest.MonkeyPatch]:
    """A run in this process, which leaves no trace in its environment."""
    monkeypatch.setenv("LOOPCODER_CACHE", environment["LOOPCODER_CACHE"])
    for name in (*WORLD, "LOOPCODER_OVERRIDES", "LOOPCODER_CONFIG"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield monkeypatch


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Samples whose steps have a gradient that is not finite, by the first of a step."""
    bad: set[int] = set()
    now: list[bool] = [False]
    step, forward_backward = loop.Run._step, loop.forward_backward

    def spoiled_step(run: Any, data: Any, logged: bool) -> Any:
        now[0] = data.before.sample in bad
        return step(run, data, logged)

    def spoiled(state: Any, *args: Any) -> Any:
        sums = forward_backward(state, *args)
        if now[0]:
            next(state.network.parameters()).main_grad.fill_(float("nan"))
        return sums

    monkeypatch.setattr(loop.Run, "_step", spoiled_step)
    monkeypatch.setattr(loop, "forward_backward", spoiled)
    return bad


@pytest.fixture
def train(documents: Path, alone: pytest.MonkeyPatch) -> Any:
    def run(run_dir: Path, *overrides: str) -> int:
        command = ["train", *SMALL, f"path={documents}", *STEPS, f"run_dir={run_dir}", *overrides]
        code = main(command)
        for name in (*WORLD, "LOOPCODER_OVERRIDES", "LOOPCODER_CONFIG"):
            alone.delenv(name, raising=False)
        return code

    return run


def curve(run_dir: Path) -> list[Any]:
    keys = ("step", "loops", "loss", "grad_norm", "lr", "tokens", "samples", "val/loss")
    return [[r.get(k) for k in keys] for r in read_metrics(run_dir / "metrics.jsonl")]


def position(run_dir: Path, step: int) -> Any:
    path = checkpoints.step_folder(run_dir, step) / "state.json"
    return json.loads(path.read_text())["position"]


@pytest.mark.chaos
def test_it_goes_back_and_leaves_the_window_out(
    train: Any, spoil: set[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps of four samples: 6 and 7 are bad, and so is 9 after the first window is left out."""
    went_back, skipped = tmp_path / "went_back", tmp_path / "skipped"
    spoil |= {20, 24}
    assert train(went_back) == EXIT_RETRY
    said = capsys.readouterr()
    assert "goes back to step 4" in said.err and "samples 16 to 27 of data stage 1" in said.err
    assert [r.skip_steps for r in rewinds_of(went_back)] == [3]
    # a save that is due while steps are bad waits for a good one
    spoil |= {40, 44}  # steps 8 and 9 of what comes then
    assert train(went_back) == EXIT_RETRY
    assert [(r.to_step, r.skip_steps) for r in rewinds_of(went_back)] == [(4, 3), (4, 8)]
    assert [c.step for c in checkpoints.complete(went_back / "checkpoints")] == [4]
    assert train(went_back) == 0

    assert train(skipped, "data.skip=[{step:5,steps:8}]") == 0
    assert curve(went_back) == curve(skipped)
    assert [r["step"] for r in read_metrics(went_back / "metrics.jsonl")] == list(range(1, 11))
    assert position(went_back, 10) == position(skipped, 10)
    for step in (4, 8, 10):
        manifests = [
            json.loads((checkpoints.step_folder(d, step) / "manifest.json").read_text())["files"]
            for d in (went_back, skipped)
        ]
        ours, theirs = ({n: e for n, e in m.items() if n.endswith(".distcp")} for m in manifests)
        assert ours and ours == theirs
    events = read_metrics(went_back / "events.jsonl")
    rewound = [e for e in events if e["kind"] == "run_rewound"]
    assert [(e["from_step"], e["to_step"], e["sample"]) for e in rewound] == [
        (7, 4, 16),
        (9, 4, 16),
    ]
    # of the first process steps 1 to 4 count, of the second none
    marks = read_marks(went_back)
    assert {mark.session: mark.from_step for mark in marks} == {0: 0, 1: 4, 2: 4}
    kept = next(m for m in marks if m.step == 4 and m.session == 0).seconds["steps"]
    last = [max(m.seconds["steps"] for m in marks if m.session == n) for n in range(3)]
    account = account_of(marks)
    assert account.seconds["steps"] == pytest.approx(kept + last[2], abs=0.3)
    assert account.seconds["lost"] == pytest.approx(last[0] - kept + last[1], abs=0.3)
    assert min(last[0] - kept, last[1]) > 0
    refused = [(e["step"], e["sample"]) for e in events if e["kind"] == "step_refused"]
    assert refused == [(6, 20), (7, 24), (8, 40), (9, 44)]


@pytest.mark.chaos
def test_a_few_bad_steps_are_passed_and_too_many_rewinds_end_it(
    train: Any, spoil: set[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil |= {28}  # of step 8, whose checkpoint waits
    assert train(tmp_path / "passed") == 0
    saved = [c.step for c in checkpoints.complete(tmp_path / "passed" / "checkpoints")]
    assert saved == [4, 9, 10]

    run_dir = tmp_path / "again"
    spoil |= set(range(20, 400, 4))
    assert train(run_dir, "faults.rewinds=1") == EXIT_RETRY
    assert train(run_dir, "faults.rewinds=1") == EXIT_NO_RETRY
    assert "the run went back 1 time before (faults.rewinds=1)" in capsys.readouterr().err
    kinds = [e["kind"] for e in read_metrics(run_dir / "events.jsonl")]
    assert kinds[-2:] == ["run_diverged", "run_stopped"]
    spoil |= {4, 8}
    assert train(tmp_path / "early") == EXIT_NO_RETRY
    assert "no checkpoint of before step 2" in capsys.readouterr().err
    assert not (tmp_path / "early" / REWINDS).exists()


def test_checkpoints_that_were_undone_are_kept_under_another_name(tmp_path: Path) -> None:
    from loopcoder.checkpoint.rewind import _set_aside

    for step in (4, 8, 12):
        folder = checkpoints.step_folder(tmp_path, step)
        folder.mkdir(parents=True)
        (folder / checkpoints.MANIFEST).write_text("{}")
    (tmp_path / "checkpoints" / "step_00000008.undone").mkdir()
    found = checkpoints.complete(tmp_path / "checkpoints")
    _set_aside(found[1:])
    assert checkpoints.complete(tmp_path / "checkpoints") == found[:1]
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == [
        "step_00000004", "step_00000008.undone", "step_00000008.undone-1", "step_00000012.undone"
    ]  # fmt: skip


def test_a_second_reading_changes_nothing(tmp_path: Path) -> None:
    from tests.configs import small_config

    config = small_config()
    rewind = Rewind(4, 7, 3, 0, 16, 12, "spike", "2026-11-29T22:00:00+00:00")
    (tmp_path / REWINDS).write_text(json.dumps([vars(rewind)]))
    assert with_rewinds(config, tmp_path) == config  # no checkpoint: it begins anew
    folder = checkpoints.step_folder(tmp_path, 4)
    folder.mkdir(parents=True)
    (folder / checkpoints.MANIFEST).write_text("{}")
    once = with_rewinds(config, tmp_path)
    assert [(s.step, s.steps) for s in once.data.skip] == [(5, 3)]
    assert with_rewinds(once, tmp_path) == once
