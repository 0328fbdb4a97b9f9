"""The thread that prepares steps: the right ones, in order, its errors raised, and gone when
closed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from loopcoder.config.data import StageConfig
from loopcoder.config.schema import Config
from loopcoder.data import loader as module
from loopcoder.data.batch import Batch
from loopcoder.data.blend import blend_at
from loopcoder.data.loader import Loader, StepData, step_data
from loopcoder.data.sampler import Position, advance
from loopcoder.errors import InputError
from tests.configs import small_config

PATIENCE_S = 20
"""No test waits this long unless something hangs."""


@pytest.fixture
def config(data, seed) -> Config:
    """Two stages of four steps, batches of 4, one prepared ahead."""
    stages = [
        StageConfig(until=4 * 4 * 16, seq_length=16),
        StageConfig(seq_length=32, mixture={"code": 1.0}),
    ]
    base = small_config()
    return replace(
        base,
        data=data(stages=stages, prefetch_steps=1),
        seed=seed,
        train=replace(base.train, max_steps=8, global_batch_size=4, micro_batch_size=2),
    )


def position_at(config: Config, step: int) -> Position:
    position = Position()
    for _ in range(step):
        position, _ = advance(config, position)
    return position


def assert_same(got: StepData, expected: StepData) -> None:
    assert (got.before, got.after, got.size) == (expected.before, expected.after, expected.size)
    for ours, theirs in zip(got.microbatches, expected.microbatches, strict=True):
        for field in fields(Batch):
            a, b = getattr(ours, field.name), getattr(theirs, field.name)
            assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b, field.name


def in_time[T](function: Callable[[], T]) -> T:
    """Call a function that waits for the thread; should it wait for ever, fail instead."""
    done: list[tuple[T | None, BaseException | None]] = []

    def call() -> None:
        try:
            done.append((function(), None))
        except BaseException as error:
            done.append((None, error))

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(PATIENCE_S)
    assert done, f"still waiting after {PATIENCE_S} s"
    value, error = done[0]
    if error is not None:
        raise error
    return value


def close_in_time(loader: Loader) -> None:
    in_time(loader.close)
    assert loader._thread is None or not loader._thread.is_alive()


def prefetching(config: Config, steps: int) -> Config:
    return replace(config, data=replace(config.data, prefetch_steps=steps))


@pytest.mark.data_full
@pytest.mark.parametrize("first", [0, 3, 4, 7, 8])
@pytest.mark.parametrize(("rank", "ahead"), [(0, 1), (1, 3), (1, 0)])
def test_yields_the_remaining_steps(corpus, config, first, rank, ahead):
    config = prefetching(config, ahead)
    loader = Loader(config, corpus, position_at(config, first), rank, 2, pin=False)
    blend = partial(blend_at, config, corpus)
    steps = in_time(lambda: list(loader))
    close_in_time(loader)
    assert [s.before.step for s in steps] == list(range(first, 8))
    assert [s.before.stage for s in steps] == [0, 0, 0, 0, 1, 1, 1, 1][first:]
    for got in steps:
        expected = step_data(config, corpus, position_at(config, got.before.step), rank, 2, blend)
        assert_same(got, expected)
    shapes = [s.microbatches[0].tokens.shape for s in steps]
    assert shapes == [*[(2, 16)] * 4, *[(2, 32)] * 4][first:]


@pytest.mark.parametrize("ahead", [0, 1])
def test_an_error_is_raised_after_the_steps_before_it(corpus, config, monkeypatch, ahead):
    def fails_at_two(config, corpus, position, *args):
        if position.step == 2:
            raise OSError("the disk went away")
        return step_data(config, corpus, position, *args)

    monkeypatch.setattr(module, "step_data", fails_at_two)
    loader = Loader(prefetching(config, ahead), corpus, Position(), 0, 1, pin=False)
    steps = iter(loader)
    assert [in_time(lambda: next(steps)).before.step for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="the disk went away") as raised:
        in_time(lambda: next(steps))
    assert loader.error is raised.value  # known before the steps that are ready are done
    close_in_time(loader)


@pytest.mark.parametrize("taken", [0, 2])
def test_close_with_a_full_queue(corpus, config, monkeypatch, taken):
    """The thread has one step in the queue and another in hand; nobody will take either."""
    in_hand = threading.Event()

    def tells(config, corpus, position, *args):
        data = step_data(config, corpus, position, *args)
        if position.step == taken + 1:
            in_hand.set()
        return data

    monkeypatch.setattr(module, "step_data", tells)
    loader = Loader(config, corpus, Position(), 0, 1, pin=False)
    assert len(in_time(lambda: list(islice(loader, taken)))) == taken
    assert in_hand.wait(PATIENCE_S)
    close_in_time(loader)


def test_without_prefetching_nothing_is_made_that_is_not_asked_for(corpus, config, monkeypatch):
    built = []
    monkeypatch.setattr(module, "step_data", lambda *args: built.append(1) or step_data(*args))
    threads = threading.active_count()
    loader = Loader(prefetching(config, 0), corpus, Position(), 0, 1, pin=False)
    for number, _ in enumerate(loader):
        assert len(built) == number + 1
        assert threading.active_count() == threads
    assert len(built) == 8
    loader.close()


def test_does_not_run_ahead_of_the_queue(corpus, config, monkeypatch):
    """One step waits and one is in hand, or memory would fill while a step computes."""
    built, refused = [], threading.Event()

    class Watched(queue.Queue):
        def put(self, *args, **kwargs):
            try:
                super().put(*args, **kwargs)
            except queue.Full:
                refused.set()
                raise

    monkeypatch.setattr(module, "queue", SimpleNamespace(Queue=Watched, Full=queue.Full))
    monkeypatch.setattr(module, "step_data", lambda *args: built.append(1) or step_data(*args))
    loader = Loader(config, corpus, Position(), 0, 1, pin=False)
    assert refused.wait(PATIENCE_S)
    assert len(built) == config.data.prefetch_steps + 1
    assert len(in_time(lambda: list(loader))) == len(built) == 8
    close_in_time(loader)


def test_closed_after_the_last_step(corpus, config):
    loader = Loader(config, corpus, position_at(config, 8), 0, 1, pin=False)
    assert in_time(lambda: list(loader)) == []
    close_in_time(loader)


@pytest.mark.parametrize("stage", [0, 1])
def test_wrong_data_is_found_before_the_first_step(corpus, config, stage):
    """Of later stages too: the run would otherwise die there after hours."""
    stages = list(config.data.stages)
    stages[stage] = replace(stages[stage], mixture={"poetry": 1.0})
    with pytest.raises(InputError, match="'poetry'"):
        Loader(
            replace(config, data=replace(config.data, stages=stages)),
            corpus,
            Position(),
            0,
            1,
            pin=False,
        )
    assert not [t for t in threading.enumerate() if t.name == "loopcoder-data"]
