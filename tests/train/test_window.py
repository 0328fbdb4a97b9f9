"""What is measured between two records."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from loopcoder.backends import Backends
from loopcoder.config.objective import ObjectiveConfig
from loopcoder.data.loader import StepData
from loopcoder.data.sampler import Position
from loopcoder.metrics.throughput import Throughput
from loopcoder.model.flops import train_flops_per_token
from loopcoder.train import window as module
from loopcoder.train.records import throughput_of
from loopcoder.train.window import Window, peak_memory
from tests.configs import small_config

NO_PEAK = Throughput(1.0, 1.0, None, 4)


class Clock:
    """A clock that moves when told to."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def step(number: int, tokens: int) -> StepData:
    before = Position(step=number - 1, tokens=tokens * (number - 1))
    after = Position(step=number, tokens=tokens * number)
    return StepData([], before, after, 1, np.zeros(1, dtype=np.int64))


def test_times_and_tokens_of_the_steps_between_two_records(clock: Clock, rng: random.Random):
    window = Window()
    for _ in range(3):
        steps, tokens = rng.randrange(1, 6), rng.randrange(1, 1000)
        waits = [rng.uniform(0, 1) for _ in range(steps)]
        works = [rng.uniform(1, 2) for _ in range(steps)]

        def arriving(waits: list[float] = waits, tokens: int = tokens) -> Any:
            for number, wait in enumerate(waits, 1):
                clock.now += wait
                yield step(number, tokens)

        for data, work in zip(window.waiting_for(arriving()), works, strict=True):
            clock.now += work
            window.add(data, 2)
            with window.excluding():  # an evaluation
                clock.now += rng.uniform(0, 100)
        seconds = sum(waits) + sum(works)
        assert window.measure(NO_PEAK) == pytest.approx(
            {
                "step_time_s": seconds / steps,
                "data_wait_s": sum(waits) / steps,
                "tokens_per_s": tokens * steps / seconds,
                "tokens_per_s_per_rank": tokens * steps / seconds / 4,
            }
        )


def test_memory_is_the_peak_of_this_process_in_bytes():
    resident = psutil.Process().memory_info().rss
    # the kernel counts the two at different times
    assert 0.8 * resident <= peak_memory(torch.device("cpu")) < 100 * resident


def test_flops_are_those_of_the_loops_that_ran(rng: random.Random) -> None:
    config = replace(
        small_config(dict(num_loops=3)), objective=ObjectiveConfig(loop_count="uniform")
    )
    window, counts = Window(), [rng.randint(1, 3) for _ in range(9)]
    for number, loops in enumerate(counts, 1):
        window.add(step(number, 32), loops)
    ranks: Any = SimpleNamespace(device=torch.device("cpu"), world_size=1)
    found = throughput_of(config, Backends(), ranks, 128, 0, window.tokens_by_loops)
    expected = [
        train_flops_per_token(replace(config.model, num_loops=loops), 128, 32)[0]
        for loops in counts
        if loops > 1
    ]
    # with one loop the model has no gates to run, as a step of one loop of more has not
    one = train_flops_per_token(small_config(dict(num_loops=1)).model, 128, 32)[0]
    mean = (sum(expected) + counts.count(1) * one) / len(counts)
    assert found.flops_per_token_causal == pytest.approx(mean)
