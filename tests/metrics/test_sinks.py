"""Which sinks a config turns on, and what each of them shows."""

from __future__ import annotations

import io
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loopcoder.backends import Backends
from loopcoder.config.schema import LoggingConfig
from loopcoder.errors import InputError
from loopcoder.metrics.sinks import (
    ProgressSink,
    TensorBoardSink,
    WandbSink,
    build_sinks,
    describe,
    describe_evaluation,
    duration,
    human,
)

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


def ticking(step_s: float) -> Callable[[], float]:
    now = [0.0]

    def clock() -> float:
        now[0] += step_s
        return now[0]

    return clock


def test_plain_lines_come_by_time_and_at_evaluations() -> None:
    out = io.StringIO()
    sink = ProgressSink(100, stream=out, every_s=10, clock=ticking(1.0))
    for step in range(1, 101):
        record = {"step": step, "loss": 2.0, "tokens_per_s": 12345.0}
        if step == 55:
            record |= {"val/loss": 1.5, "val/loss/code": 1.25, "val/bpb/code": 0.5}
            record |= {"val/loss/loop0": 2.5, "val/loss/loop1": 1.5}
        sink.log(record)
    sink.event("checkpoint_saved", step=100, path="/runs/a", bytes=14884316, seconds=0.326)
    sink.event("run_continues", path="/runs/a", step=100)  # the run says it in a sentence
    sink.close()
    lines = out.getvalue().splitlines()
    steps = [int(line.split()[1].split("/")[0]) for line in lines if line.startswith("step")]
    assert steps == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100]
    assert lines[1] == "step 11/100  loss 2.0000  12.3k tok/s  ETA 1m29s"
    assert (
        "eval step 55: val 1.5000  |  code 1.2500 (0.500 bits/byte)  |  by loop 2.5000 -> 1.5000"
        in lines
    )
    assert lines[-1] == "saved step 100 (14.9MB, 0.3 s)"


def test_an_evaluation_names_further_lengths_apart_from_domains() -> None:
    record = {"step": 9, "val/loss": 2.0, "val/loss/code": 1.5, "val/loss/len16": 3.0}
    record |= {"val/loss/len512": 1.75, "val/loss/len512/code": 1.25, "val/loss/len512/loop0": 4.0}
    record |= {"val/bpb/len512/code": 0.5, "val/loss/lengthy": 6.0, "val/weighting": "mixture"}
    record |= {"val/exam/loss": 7.0, "val/exam/loss/code": 8.0, "val/exam/loss/len16": 9.0}
    assert describe_evaluation(record) == (
        "eval step 9: val 2.0000  |  code 1.5000  lengthy 6.0000  |  exam 7.0000  |  "
        "by length 16: 3.0000  512: 1.7500"
    )


def test_describe_states_units_and_leaves_out_what_is_absent() -> None:
    record = {
        "step": 3,
        "loss": 1.0,
        "val/loss": 2.0,
        "grad_norm": 0.5,
        "lr": 3e-4,
        "mfu_causal": 0.41,
        "mfu_full": 0.45,
        "data_wait_s": 0.01,
        "step_time_s": 0.5,
        "memory_bytes": 2**31,
        "skipped": 1,
    }
    assert "  ".join(describe(record, 10, 7.0)) == (
        "loss 1.0000  val 2.0000  grad 0.5  lr 3.00e-04  MFU 41.0% causal, 45.0% full  "
        "data wait 2.0%  mem 2.00 GiB  skipped 1  ETA 7s"
    )
    assert describe({"step": 3}, 10, None) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("rich_installed", [True, False])
def test_terminal_gets_a_live_bar_if_rich_is_there(rich_installed: bool) -> None:
    pytest.importorskip("rich")
    out = Terminal()
    sink = ProgressSink(10, stream=out, title="tiny R=2", rich_installed=rich_installed)
    sink.log({"step": 4, "loss": 2.125})
    sink.close()
    assert ("\x1b[" in out.getvalue()) == rich_installed
    assert "4/10" in out.getvalue()
    assert "loss 2.1250" in out.getvalue()


def test_numbers_for_people() -> None:
    assert [human(x) for x in (0.5, 999.4, 999.6, 12345, 7.6e9, 2.5e15)] == [
        "0.5",
        "999",
        "1k",
        "12.3k",
        "7.6B",
        "2.5e+03T",
    ]
    assert [duration(x) for x in (45, 190, 7500, 4 * 86400 + 3 * 3600)] == [
        "45s",
        "3m10s",
        "2h05m",
        "4d03h",
    ]


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
