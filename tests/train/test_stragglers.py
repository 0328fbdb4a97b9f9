"""Slow ranks are named, and noise is not."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch

from loopcoder.config.faults import FaultsConfig
from loopcoder.train import compute as compute_module
from loopcoder.train.compute import ComputeTime
from loopcoder.train.stragglers import WINDOWS, Place, SlowRank, Stragglers
from tests.configs import small_config
from tests.conftest import fresh_seed
from tests.dist.launch import in_processes

ONE_STAGE = [Place(f"node{rank // 2}", 0) for rank in range(4)]


def stragglers(faults: FaultsConfig, places: Sequence[Place], window_s: float = 0.0) -> Stragglers:
    """Return what judges by steps alone, unless the test says otherwise."""
    return Stragglers(faults, places, window_s=window_s)


def named(judge: Stragglers, steps: range, seconds: Any) -> list[SlowRank]:
    found = []
    for step in steps:
        found += judge.judge(step, seconds(step))
    return found


def test_a_slow_rank_is_named_once_and_again_after_a_good_window() -> None:
    one = stragglers(FaultsConfig(slow_rank=1.2, slow_window=10), ONE_STAGE)

    def seconds(step: int) -> list[float]:
        slow = 7 < step <= 100 or step > 130
        return [1.0, 1.1, 1.3 if slow else 1.0, 0.9]

    (first, again) = named(one, range(1, 200), seconds)
    # slow from step 8 on: the windows that end at 20, 30 and 40
    assert first == SlowRank(40, 2, "node1", 1.3, 1.3)
    assert again.step == 160 and again.rank == 2
    assert not named(stragglers(FaultsConfig(slow_rank=None), ONE_STAGE), range(1, 200), seconds)


def test_ranks_are_compared_within_their_pipeline_stage() -> None:
    places = [Place("a", 0), Place("a", 0), Place("b", 1), Place("b", 1)]
    one = stragglers(FaultsConfig(slow_rank=1.2, slow_window=1), places)
    assert not named(one, range(1, 9), lambda _: [1.0, 1.0, 3.0, 3.0])
    (found,) = named(one, range(9, 13), lambda _: [1.0, 1.0, 3.0, 4.5])
    assert (found.rank, found.ratio) == (3, 1.5)
    assert one.fields([2.0, 1.0, 3.0, 4.5]) == {
        "compute_s": 2.5,
        "compute_s/slowest": 2.0,
        "compute_s/slowest_rank": 0,
    }
    assert stragglers(FaultsConfig(), places[:1]).fields([2.0]) == {"compute_s": 2.0}


def test_lines_of_several_steps_fill_a_window(capsys: pytest.CaptureFixture[str]) -> None:
    one = stragglers(FaultsConfig(slow_rank=1.2, slow_window=20), ONE_STAGE[:2])
    found = []
    for step in range(25, 1000, 25):  # logging.interval=25
        found += one.judge(step, [1.0, 1.5])
    assert [slow.step for slow in found] == [25 * WINDOWS]


def test_a_window_lasts_for_some_time_as_well() -> None:
    """Steps of 50 ms: another program that takes a core for four seconds is no slow rank."""
    now = [0.0]
    one = Stragglers(FaultsConfig(), ONE_STAGE, clock=lambda: now[0])

    def disturbed(step: int) -> list[float]:
        now[0] += 0.05
        return [1.0, 1.0, 1.0, 2.0 if 100 < step <= 180 or step > 1000 else 1.0]

    (found,) = named(one, range(1, 1999), disturbed)
    assert 1000 + 3 * 200 <= found.step <= 1000 + 4 * 200


def test_noise_names_nobody_and_hides_nobody() -> None:
    """Of each rank one step in five takes up to ten times as long, in turns of the machine."""
    for _ in range(20):
        seed = fresh_seed()
        generator = random.Random(seed)

        def noisy(_: int, draw: random.Random = generator) -> list[float]:
            return [
                draw.gauss(1, 0.05) * (draw.uniform(1, 10) if draw.random() < 0.2 else 1)
                for _ in ONE_STAGE
            ]

        def one_is_slow(step: int) -> list[float]:
            own = noisy(step)
            return [own[0] * 1.6, *own[1:]]

        assert not named(stragglers(FaultsConfig(), ONE_STAGE), range(1, 1001), noisy), seed
        found = named(stragglers(FaultsConfig(), ONE_STAGE), range(1, 61), one_is_slow)
        assert [slow.rank for slow in found] == [0], seed


def test_only_own_passes_of_a_step_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 3.0, 10.0, 14.0, 20.0, 21.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    one = ComputeTime(torch.device("cpu"))
    for name in ("forward-compute", "all-grads-sync"):
        one(name).start()  # an evaluation
        one(name).stop()
    with one.step():
        one("forward-compute", log_level=2).start()
        one("forward-compute").stop()
        one("all-grads-sync").start(barrier=True)
        one("all-grads-sync").stop()
        one("backward-compute").start()
        one("backward-compute").stop()
    with one.step():
        one("forward-compute").start()
        one("forward-compute").stop()
    assert one.take() == statistics.median([2.0 + 4.0, 1.0])
    assert one.take() == 0.0


class Event:
    """A stand-in for an event of CUDA, which the device has not passed yet."""

    made: ClassVar[list[Event]] = []

    def __init__(self, enable_timing: bool):
        assert enable_timing
        self.at, self.is_passed, self.was_waited_for = 1000.0 * len(Event.made), False, False
        Event.made.append(self)

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return self.is_passed

    def synchronize(self) -> None:
        self.was_waited_for = True

    def elapsed_time(self, end: Event) -> float:
        return end.at - self.at


def test_events_of_a_gpu_are_read_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute_module.torch.cuda, "Event", Event)
    Event.made = []
    one = ComputeTime(torch.device("cuda"))
    for _ in range(3):
        with one.step():
            for name in ("forward-compute", "backward-compute"):
                one(name).start()
                one(name).stop()
    assert not any(event.was_waited_for for event in Event.made)
    assert len(one._unread) == 3
    for event in Event.made[:4]:
        event.is_passed = True
    with one.step():
        one("forward-compute").start()
        one("forward-compute").stop()
    assert len(one._unread) == 3 and not any(event.was_waited_for for event in Event.made)
    assert one.take() == 2.0  # of 2, 2, 2 and 1 s


def _measure(rank: int, steps: int, slow: int | None) -> tuple[list[Any], list[float]]:
    """Train some steps on this rank, of which one sleeps in its forward passes."""
    from loopcoder.parallel import mcore
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward
    from loopcoder.train.stragglers import gather, places_of
    from tests.dist.layouts import VOCAB, global_batch, microbatches

    config = small_config()
    ranks = mcore.initialise(config.parallel, 0)
    state = build_state(config, ranks, VOCAB)
    if rank == slow:
        state.network.register_forward_pre_hook(lambda *_: time.sleep(0.3))
    judge = stragglers(FaultsConfig(slow_rank=1.5, slow_window=2), places_of(ranks))
    found: list[Any] = []
    seconds: list[float] = []
    for step in range(1, steps + 1):
        ids = global_batch(0, step, config.train.global_batch_size, config.data.seq_length)
        mine = microbatches(config, ids, True, ranks.dp_rank, ranks.dp_size)
        with state.compute.step():
            forward_backward(state, mine, 2)
        (seconds,) = gather([state.compute.take()], ranks.device)
        found += judge.judge(step, seconds)
    return found, seconds


@pytest.mark.chaos
def test_a_rank_that_sleeps_is_named_in_time() -> None:
    """Two real ranks: the other waits for it in the reduction, and is not slow."""
    steps = 2 * (WINDOWS + 1)
    for found, seconds in in_processes(2, _measure, steps, 1):
        assert [slow.rank for slow in found] == [1]
        assert seconds[1] >= 0.3
