"""The progress of a run on the screen."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from loopcoder.metrics.progress import ProgressSink


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
    sink.event("store_unreachable", rank=0, why="no route")  # as does what copies
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
