"""The thread that ends a process which cannot end itself, and says for whom it waits."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore

from loopcoder.config.schema import ParallelConfig
from loopcoder.metrics.writer import read_metrics
from loopcoder.parallel import peers as peers_module
from loopcoder.parallel.peers import END, Peer, Peers, myself
from loopcoder.train import watch as watch_module
from loopcoder.train.watch import (
    COMPLETION,
    DATA,
    EVALUATION,
    FIRST_STEP,
    SAVE,
    START,
    STEP,
    Watch,
)


class Left(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a watch said when it would have ended this process; its times are short."""
    said: list[str] = []

    def leave(watch: Watch, why: str) -> None:
        said.append(why)
        watch._end.set()

    monkeypatch.setattr(Watch, "_leave", leave)
    monkeypatch.setattr(watch_module, "_TICK_S", 0.02)
    monkeypatch.setattr(watch_module, "_OTHER_GRACE_S", 0.3)
    monkeypatch.setattr(watch_module, "_GRACE_S", dict.fromkeys((START, FIRST_STEP, DATA), 0.1))
    monkeypatch.setattr(peers_module, "SILENT_S", 0.2)
    return said


@pytest.fixture
def watch(left: list[str], tmp_path: Path) -> Iterator[Callable[..., Watch]]:
    made: list[Watch] = []

    def make(rank: int = 0, **fields: float) -> Watch:
        made.append(Watch(tmp_path, rank, ParallelConfig(**fields)))  # type: ignore[arg-type]
        return made[-1]

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield make
    for one in reversed(made):
        one.close()
    signal.signal(signal.SIGTERM, before)


def until(condition: Callable[[], Any], limit_s: float = 10) -> Any:
    """Return what a condition gives as soon as it is true, or at last."""
    end = time.monotonic() + limit_s
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("phase", [START, FIRST_STEP, DATA, STEP])
def test_a_phase_that_does_not_end_is_left(
    watch: Callable[..., Watch], left: list[str], phase: str
) -> None:
    """Also where the main thread never comes back to Python: its C part writes to a pipe."""
    watch().enter(phase, 7)
    time.sleep(0.4)
    assert not left  # nobody has asked
    os.kill(os.getpid(), signal.SIGTERM)
    said = until(lambda: left)
    assert said and f"SIGTERM in {phase} of step 7" in said[0]


def test_a_save_is_never_left_and_what_goes_on_is_not(
    watch: Callable[..., Watch], left: list[str]
) -> None:
    one = watch()
    one.enter(STEP, 1)
    with one.within(SAVE):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.6)
    for step in range(2, 12):
        one.enter(STEP, step)
        time.sleep(0.05)
    assert not left


def test_a_hang_is_reported_with_stacks(
    watch: Callable[..., Watch],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits_in = ["nccl:all_reduce number 3 of group 0", "nccl:send 0->1 number 1 of group 4"]
    monkeypatch.setattr(watch_module, "pending", lambda: waits_in)
    monkeypatch.setattr(watch_module, "nccl_trace", lambda: b"for torch's own tool")
    one = watch(report_after_s=0.2)
    one.enter(STEP, 3)
    file = tmp_path / "stacks" / "rank_0.txt"
    assert until(lambda: file.exists() and "test_watch.py" in file.read_text())
    events = tmp_path / "events.jsonl"
    assert until(lambda: events.exists() and b"\n" in events.read_bytes())
    (hang,) = read_metrics(events)
    assert hang["kind"] == "hang" and hang["text"].endswith(f"; in {waits_in[0]}")
    assert all(f"in {collective}\n" in file.read_text() for collective in waits_in)
    assert (tmp_path / "stacks" / "nccl_trace_rank_0").read_bytes() == b"for torch's own tool"
    time.sleep(0.3)
    assert capfd.readouterr().err.count("in a step of step 3") == 1  # once, not every tick


class Store(HashStore):  # type: ignore[misc]
    """The store of a world in one process."""

    def clone(self) -> Store:
        return self


def test_who_is_waited_for_is_named() -> None:
    store = Store()
    mine, silent, gone = Peers(store, 0, 6), Peers(store, 1, 6), Peers(store, 2, 6)
    dead, slow = Peers(store, 3, 6), Peers(store, 4, 6)
    mine.tell(STEP, 9)
    silent.tell(STEP, 9)
    gone.tell(STEP, 8, left="there is no memory", code=76)
    dead.me = Peer(3, dead.me.host, 2**22 + 1, dead.me.machine)  # no such process
    dead.tell(STEP, 9)
    slow.tell(DATA, 9)
    mine.waited_for()
    mine._heard[1] = (mine._heard[1][0], time.monotonic() - 60)
    found = mine.waited_for()
    host = mine.me.host
    assert found[0] == f"rank 2 ({host}, process {os.getpid()}) has ended: there is no memory"
    assert (
        found[1].startswith("rank 3 (") and "was killed or crashed in a step of step 9" in found[1]
    )
    assert found[2] == "rank 5 has never come"
    assert found[3].startswith("rank 1 (") and "silent for 60 s" in found[3]
    assert found[4].startswith("rank 4 (") and "is in waiting for data of step 9" in found[4]
    assert len(found) == 5
    assert mine.code_of_the_gone() == 76
    dead.tell(END, 9)  # it has trained all and may go
    assert len(mine.gone()) == 1


def test_a_process_of_another_machine_is_not_taken_for_dead() -> None:
    """Pods may share a name of their host and have process ids of their own."""
    me = myself(0)
    assert not me.is_dead
    assert Peer(1, me.host, 2**22 + 1, me.machine).is_dead
    assert not Peer(1, me.host, 2**22 + 1, "another").is_dead


def test_a_lost_world_is_left_and_told(watch: Callable[..., Watch], left: list[str]) -> None:
    store = Store()
    dead = Peers(store, 1, 2)
    dead.me = Peer(1, dead.me.host, 2**22 + 1, dead.me.machine)
    dead.tell(STEP, 4)
    one = watch()
    one.enter(STEP, 4)
    one.meet(Peers(store, 0, 2))
    said = until(lambda: left)
    assert said and "rank 1 (" in said[0] and "was killed or crashed" in said[0]
    assert "rank 1 (" in (Peers(store, 2, 3).told_lost() or "")


def test_waiting_has_an_end(watch: Callable[..., Watch], left: list[str]) -> None:
    store = Store()
    Peers(store, 1, 2).tell(DATA, 4)
    one = watch(timeout_s=0.5)
    one.enter(STEP, 4)
    one.meet(Peers(store, 0, 2))
    said = until(lambda: left)
    assert said and "rank 1 (" in said[0] and "timeout_s=0.5" in said[0]


def test_a_store_that_is_silent_is_waited_for(
    watch: Callable[..., Watch],
    left: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its node may be cut off for a while: that is said, and survived until parallel.timeout_s."""
    plugged = threading.Event()

    class CutOff(Store):
        def check(self, keys: list[str]) -> bool:
            plugged.wait()
            return bool(super().check(keys))

    monkeypatch.setattr(peers_module, "_STORE_S", 0.05)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.7")
    one = watch(rank=1, timeout_s=2.5, report_after_s=0.5)
    one.enter(STEP, 4)
    one.meet(Peers(CutOff(), 1, 2))
    reported: list[str] = []
    until(lambda: reported.append(capfd.readouterr().err) or "".join(reported))
    assert "the node of rank 0 (10.0.0.7) has not answered" in "".join(reported) and not left
    said = until(lambda: left)
    assert "10.0.0.7" in said[0] and "timeout_s=2.5" in said[0]
    plugged.set()


def test_who_does_not_come_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    store = Store()
    with pytest.raises(peers_module.ProcessLost, match="2 of 3 ranks have not come: 1, 2") as error:
        peers_module.meet(store, 0, 3, timeout_s=0.3, report_after_s=0.1)
    assert error.value.exit_code == 75
    assert "rank 0 waits: 2 of 3 ranks have not come: 1, 2" in capsys.readouterr().err


def test_the_first_reason_to_leave_counts() -> None:
    store = HashStore()
    mine, other = Peers(store, 0, 2), Peers(store, 1, 2)
    mine.tell(STEP, 7, left="the corpus is gone", code=3)
    mine.tell(END, 7)  # the watch goes on ticking until the process has ended
    mine.tell(STEP, 7, left="lost", code=75)
    assert "has ended: the corpus is gone" in other.gone()[0]
    assert other.code_of_the_gone() == 3


def test_a_phase_is_over_when_it_fails(watch: Callable[..., Watch]) -> None:
    one = watch()
    one.enter(STEP, 7)
    with pytest.raises(OSError), one.within(SAVE):
        raise OSError
    assert one._phase == STEP


def test_time_is_counted_by_phase(
    left: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(watch_module.time, "monotonic", lambda: now[0])

    def lasts(seconds: float) -> None:
        now[0] += seconds

    one = Watch(tmp_path, 0, ParallelConfig(), began=88.0)
    one._end.set()  # the clock is the test's
    lasts(3)
    one.enter(DATA, 1)
    lasts(0.5)
    one.enter(FIRST_STEP, 1)
    lasts(20)
    with one.within(EVALUATION):
        lasts(4)
    with one.within(SAVE):
        lasts(2)
    with one.within(COMPLETION):
        lasts(1)
    lasts(0.25)
    one.enter(STEP, 2)
    lasts(0.5)
    assert one.spent() == {
        "start": 12 + 3,
        "steps": 20.75,
        "data": 0.5,
        "evaluation": 4,
        "saving": 3,
        "down": 0,
    }
    one.close()


def test_why_a_run_stopped_is_in_its_record(watch: Callable[..., Watch], tmp_path: Path) -> None:
    watch().leaves("there is no such corpus", 3)
    assert not (tmp_path / "events.jsonl").exists()  # it has not begun
    (tmp_path / "events.jsonl").touch()
    other, one = watch(rank=1), watch()
    other.enter(STEP, 8)
    other.leaves("this is told to the other ranks", 75)
    one.enter(STEP, 7)
    one.leaves("SIGTERM in a step", 75)
    one.leaves("a collective failed", 1)
    (event,) = read_metrics(tmp_path / "events.jsonl")
    assert (event["kind"], event["step"]) == ("run_stopped", 7)
    assert (event["why"], event["exit_code"]) == ("SIGTERM in a step", 75)
