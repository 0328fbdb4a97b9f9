"""Which sinks a config turns on, and what each of them keeps."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loopcoder.backends import Backends
from loopcoder.config.schema import LoggingConfig
from loopcoder.errors import InputError
from loopcoder.metrics.sinks import TensorBoardSink, WandbSink, build_sinks
from loopcoder.metrics.writer import MetricsWriter
from tests.metrics.wandb_files import uploaded, wait_until_written

ALL = Backends(versions={"rich": "15", "wandb": "0.31", "tensorboard": "2.21"})
NONE = Backends()


def build(run_dir: Path, logging: LoggingConfig, backends: Backends) -> list[str]:
    sinks = build_sinks(
        logging,
        backends,
        run_dir=run_dir,
        config={"model": {"name": "tiny", "num_loops": 2}},
        max_steps=10,
        resume_step=None,
    )
    for sink in sinks:
        sink.close()
    return [type(sink).__name__ for sink in sinks]


def test_auto_is_on_where_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopcoder.metrics.sinks.WandbSink", lambda **kw: WandbStub(kw))
    assert build(tmp_path, LoggingConfig(), NONE) == ["ProgressSink"]
    names = ["WandbStub", "TensorBoardSink", "ProgressSink"]
    assert build(tmp_path, LoggingConfig(), ALL) == names
    assert build(tmp_path, LoggingConfig(wandb="off", tensorboard="off", progress=False), ALL) == []


class WandbStub:
    def __init__(self, arguments: dict[str, Any]):
        assert arguments["mode"] == "offline"

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "setting"), [("wandb", "offline"), ("wandb", "online"), ("tensorboard", "on")]
)
def test_asked_for_but_missing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, setting: str
) -> None:
    """The check of the config comes first and says it better; nothing is left out silently."""
    monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    asked: Any = {"wandb": "off", "tensorboard": "off", name: setting}
    with pytest.raises(InputError) as error:
        build(tmp_path, LoggingConfig(**asked), NONE)
    (problem,) = error.value.problems
    assert problem.fact.startswith(f"logging.{name}={setting}, but it did not start: ")
    assert f"logging.{name}=off" in problem.fix


def test_what_does_not_start_is_left_out_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: Any) -> None:
        raise PermissionError("not your folder")

    monkeypatch.setattr("loopcoder.metrics.sinks.WandbSink", fail)
    assert build(tmp_path, LoggingConfig(tensorboard="off"), ALL) == ["ProgressSink"]
    assert "wandb is left out, it did not start: not your folder" in caplog.text
    with pytest.raises(InputError, match="did not start: not your folder"):
        build(tmp_path, LoggingConfig(wandb="online"), ALL)


SESSIONS = [(None, range(1, 7)), (4, range(5, 9)), (2, range(3, 10)), (9, range(10, 12))]
"""From which step a process continues, and which steps it trains: it goes back twice."""


def loss_of(step: int, resume_step: int | None) -> float:
    return float(step + 100 * (resume_step or 0))


def test_each_step_is_there_once_after_two_rewinds(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("torch")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wanted: dict[int, float] = {}
    for resume_step, steps in SESSIONS:
        sink = TensorBoardSink(tmp_path, resume_step=resume_step)
        wanted = {step: loss for step, loss in wanted.items() if step <= (resume_step or 0)}
        sink.event("run_continues", step=resume_step)
        for step in steps:
            wanted[step] = loss_of(step, resume_step)
            sink.log({"step": step, "loss": wanted[step], "note": "text is left out"})
        sink.samples([{"step": steps[0], "sample": 1, "prompt": "a\n*b", "continuation": "_c_"}])
        sink.event("checkpoint_saved", step=steps[0])
        sink.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == sorted(wanted.items())
    assert events.Tags()["scalars"] == ["loss"]
    *_, sample = events.Tensors("samples/1/text_summary")
    assert sample.step == 10
    assert sample.tensor_proto.string_val[0] == b"    a\n    *b\n\ncontinued:\n\n    _c_"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of wandb's may use the network, or outlast the test in the environment."""
    pytest.importorskip("wandb")
    for name in ("WANDB_ERROR_REPORTING", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # so that what the sink sets is undone after the test
        monkeypatch.delenv(name)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("looked up a host"))


def wandb_session(run_dir: Path, resume_step: int | None, steps: Sequence[int]) -> str:
    """Log steps as a run does; return the id of the wandb run."""
    sink = WandbSink(
        mode="offline",
        project="test",
        run_dir=run_dir,
        config={"model": {"name": "tiny"}},
        resume_step=resume_step,
    )
    with MetricsWriter(run_dir, sinks=[sink], resume_step=resume_step) as writer:
        for step in steps:
            writer.log({"step": step, "loss": loss_of(step, resume_step)})
    # named by the second, within which no run is started twice
    (folder,) = (run_dir / "wandb").glob("offline-run-*")
    wait_until_written(folder)
    folder.rename(run_dir / "wandb" / f"session_{len(wandb_folders(run_dir))}")
    return (run_dir / "wandb_id").read_text().strip()


def wandb_folders(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "wandb").glob("session_*"))


@pytest.mark.usefixtures("offline")
def test_wandb_offline_keeps_its_id_and_is_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = wandb_session(tmp_path, None, [1])
    assert wandb_session(tmp_path, 1, [2]) == first
    other = wandb_session(tmp_path, None, [1])
    assert other != first
    runs = uploaded(wandb_folders(tmp_path))
    assert {name: [step for step, _ in rows] for name, rows in runs.items()} == {
        first: [1, 2],
        other: [1],
    }
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.usefixtures("offline")
def test_wandb_takes_back_steps_that_are_done_again(tmp_path: Path) -> None:
    wanted: dict[int, float] = {}
    for resume_step, steps in SESSIONS:
        wandb_session(tmp_path, resume_step, steps)
        wanted = {step: loss for step, loss in wanted.items() if step <= (resume_step or 0)}
        wanted |= {step: loss_of(step, resume_step) for step in steps}
    (history,) = uploaded(wandb_folders(tmp_path)).values()
    assert [(step, row["loss"]) for step, row in history] == sorted(wanted.items())


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("goes_on", [True, False])
def test_wandb_shows_an_evaluation_that_is_made_up(tmp_path: Path, goes_on: bool) -> None:
    """It is of a step that was logged before the run was stopped, which wandb takes no second
    time."""
    wandb_session(tmp_path, None, [1, 2])
    sink = WandbSink(mode="offline", project="test", run_dir=tmp_path, config={}, resume_step=2)
    sink.samples([{"step": 2, "sample": 0, "prompt": "a", "continuation": "b"}])
    sink.log({"step": 2, "val/loss": 5.0})
    if goes_on:
        sink.log({"step": 3, "loss": 4.0})
    sink.close()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    wait_until_written(folder)
    (history,) = uploaded([*wandb_folders(tmp_path), folder]).values()
    assert [step for step, _ in history] == [1, 2, 3]
    assert history[-1][1]["val/loss"] == 5.0
    assert history[-1][1]["samples.nrows"] == 1
    assert history[-1][1].get("loss") == (4.0 if goes_on else None)


def test_a_wandb_that_takes_nothing_back_gets_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = pytest.importorskip("wandb")
    calls: list[dict[str, Any]] = []

    class Run:
        def finish(self) -> None:
            pass

    def init(**arguments: Any) -> Run:
        calls.append(arguments)
        if "resume_from" in arguments:
            raise wandb.errors.CommError("rewind is not enabled")
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    (tmp_path / "wandb_id").write_text("abcd\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 7}\n')
    sink = WandbSink(mode="online", project="p", run_dir=tmp_path, config={}, resume_step=5)
    sink.close()
    asked, instead = calls
    assert asked["resume_from"] == "abcd?_step=5" and "id" not in asked
    new = (tmp_path / "wandb_id").read_text().strip()
    assert instead["id"] == new != "abcd"
    assert instead["name"] == f"{tmp_path.name} from step 5"
    assert instead["group"] == asked["group"] == tmp_path.name
    assert "rewind is not enabled" in caplog.text
