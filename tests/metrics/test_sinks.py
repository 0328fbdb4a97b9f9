"""Which sinks a config turns on, and what each of them keeps."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from loopcoder.backends import Backends
from loopcoder.config.schema import LoggingConfig
from loopcoder.errors import InputError
from loopcoder.metrics.sinks import TensorBoardSink, WandbSink, build_sinks

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


def test_tensorboard_hides_the_steps_that_are_done_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("torch")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoardSink(tmp_path, resume_step=None)
    for step in (1, 2, 3, 4):
        first.log({"step": step, "loss": float(step), "note": "text is left out"})
    first.event("checkpoint_saved", step=2)
    first.close()
    second = TensorBoardSink(tmp_path, resume_step=2)
    second.log({"step": 3, "loss": 30.0})
    second.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert events.Tags()["scalars"] == ["loss"]


def test_wandb_offline_keeps_its_id_and_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_ERROR_REPORTING", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # so that what the sink sets is undone after the test
        monkeypatch.delenv(name)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("looked up a host"))

    def session(resume_step: int | None) -> str:
        sink = WandbSink(
            mode="offline",
            project="test",
            run_dir=tmp_path,
            config={"model": {"name": "tiny"}},
            resume_step=resume_step,
        )
        sink.log({"step": 1, "loss": 1.0})
        sink.close()
        return (tmp_path / "wandb_id").read_text().strip()

    first = session(None)
    assert session(1) == first
    assert session(None) != first
    runs = list((tmp_path / "wandb").glob(f"offline-run-*-{first}"))
    assert runs
    assert all(list(run.glob("*.wandb")) for run in runs)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
