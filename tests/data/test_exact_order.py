"""The samples of a run are the same for any ranks, any prefetching and any stops, through stages,
mixtures, lengths, a ramp and what is left out; each comes once in an epoch."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.driver import prepare
from loopcoder.checkpoint.state import CheckpointState
from loopcoder.config.data import DataConfig, SkipConfig, StageConfig
from loopcoder.config.mixture import lowest_terms
from loopcoder.config.schema import BatchRampConfig, Config
from loopcoder.data import loader as module
from loopcoder.data.blend import Blend, Rows, blend_at
from loopcoder.data.corpus import Corpus
from loopcoder.data.loader import Loader
from loopcoder.data.sampler import (
    Mixture,
    Position,
    advance,
    begin_step,
    enter_stage,
    samples_of_step,
)
from tests.checkpoint.states import state_at
from tests.configs import small_config

STEPS = 500
BOTH, MORE_CODE = {"text": 1.0, "code": 1.0}, {"text": 1.0, "code": 3.0}
Data = Callable[..., DataConfig]
Samples = list[list[int]]
"""Of each step, in the order of its microbatches over the ranks."""


@pytest.fixture
def corpus(data: Data) -> Corpus:
    return prepare(data(shards=2, seq_length=16), report=lambda _: None)


def run_of(data: Data, size: int, reader: Any = "packed") -> Config:
    """The mixture changes after some 150 steps, the length after 300; the batch grows for 40."""
    tokens, unit = size * 16, size // 4
    stages = [
        StageConfig(until=150 * tokens, mixture=BOTH),
        StageConfig(until=300 * tokens, mixture=MORE_CODE),
        StageConfig(mixture=BOTH, seq_length=24),
    ]
    skip = [SkipConfig(30, 4), SkipConfig(400, 9)]
    base = small_config()
    return replace(
        base,
        data=data(reader=reader, seq_length=16, mixture=BOTH, stages=stages, skip=skip),
        train=replace(
            base.train,
            max_steps=STEPS,
            global_batch_size=size,
            micro_batch_size=unit // 4,
            batch_ramp=BatchRampConfig(start=unit, increment=unit, samples=40 * size),
        ),
    )


def walked(config: Config, steps: int = STEPS) -> Iterator[tuple[Position, list[int]]]:
    """Yield where each step stands and its samples, without a loader."""
    position = Position()
    for _ in range(steps):
        begun = begin_step(config, position)
        position, size = advance(config, position)
        yield begun, samples_of_step(begun, size, config.seed, begun.stage).tolist()


def loaded(
    config: Config, corpus: Corpus, dp: int, ahead: int, position: Position, steps: int
) -> tuple[Samples, Position]:
    """Take some steps of every rank's loader; return what they are made of, and where they end."""
    config = replace(config, data=replace(config.data, prefetch_steps=ahead))
    ranks = []
    for rank in range(dp):
        loader = Loader(config, corpus, position, rank, dp, pin=False)
        taken = list(islice(loader, steps))
        loader.close()
        ranks.append([[b.sample_ids.tolist() for b in step.microbatches] for step in taken])
        end = taken[-1].after
    found: Samples = []
    for of_ranks in zip(*ranks, strict=True):
        microbatches = [m for place in zip(*of_ranks, strict=True) for m in place]
        found.append([sample for m in microbatches for sample in m])
    return found, end


@pytest.fixture
def nothing_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which samples there are does not depend on what is in them."""

    def rows(self: Blend, samples: np.ndarray) -> Rows:
        labels = torch.zeros(len(samples), 1, dtype=torch.long)
        return Rows(torch.empty(0), torch.empty(0), labels, None)

    def batch(ids: torch.Tensor, samples: torch.Tensor, *_: object, **__: object) -> object:
        return SimpleNamespace(sample_ids=samples)

    monkeypatch.setattr(Blend, "rows", rows)
    monkeypatch.setattr(module, "make_batch", batch)


def saved(position: Position, stages: Config) -> Position:
    """Go through a checkpoint."""
    text = json.dumps(state_at(position.step, position=position).to_json())
    return enter_stage(stages.stages, CheckpointState.from_json(json.loads(text)).position)


@pytest.mark.usefixtures("nothing_read")
def test_ranks_and_prefetching_change_nothing(data: Data, corpus: Corpus) -> None:
    config = run_of(data, 64)
    wanted = [samples for _, samples in walked(config)]
    for dp in (1, 2, 4):
        for ahead in (0, 1, 3):
            found, _ = loaded(config, corpus, dp, ahead, Position(), STEPS)
            assert found == wanted


@pytest.mark.usefixtures("nothing_read")
def test_stops_and_other_ranks_change_nothing(data: Data, corpus: Corpus, seed: int) -> None:
    """Stopped anywhere, beside the places where something begins, and continued by others."""
    rng, config = random.Random(seed), run_of(data, 64)
    places = [(p.step, p) for p, _ in walked(config)]
    begins = [n for (n, p), (_, q) in zip(places[1:], places, strict=False) if p.stage != q.stage]
    stops = {*rng.sample(range(1, STEPS), 6), *begins, begins[0] - 1, 29, 30, 399}
    wanted, found, position = [samples for _, samples in walked(config)], [], Position()
    for stop in [*sorted(stops), STEPS]:
        dp, ahead = rng.choice((1, 2, 4)), rng.choice((0, 1, 3))
        part, position = loaded(config, corpus, dp, ahead, position, stop - position.step)
        found += part
        position = saved(position, config)
    assert found == wanted


@pytest.mark.usefixtures("nothing_read")
def test_stages_that_are_given_later_are_as_if_given_at_first(data: Data, corpus: Corpus) -> None:
    """A run of one open stage, stopped twice, with the next stage named each time."""
    whole = run_of(data, 64)
    first, second, third = whole.data.stages
    found, position = [], Position()
    for stages in ([replace(first, until=None)], [first, replace(second, until=None)], None):
        config = replace(whole, data=replace(whole.data, stages=stages or [first, second, third]))
        position = saved(position, config)
        assert position.stage == len(config.stages) - 1
        ends = [p.step + 1 for p, _ in walked(whole) if p.stage == position.stage]
        part, position = loaded(config, corpus, 2, 1, position, ends[-1] - position.step)
        found += part
    assert found == [samples for _, samples in walked(whole)]


@pytest.mark.parametrize("size", [64, 1024])
def test_every_batch_has_exactly_the_mixture_of_its_stage(data: Data, size: int) -> None:
    """And each sample of a stage is trained or left out, once."""
    config = run_of(data, size)
    patterns = [Mixture(stage.mixture).pattern for stage in config.stages]
    domains = [Mixture(stage.mixture).domains for stage in config.stages]
    taken: list[list[int]] = [[] for _ in config.stages]
    for position, samples in walked(config):
        stage = position.stage
        taken[stage] += samples
        counts = np.bincount(patterns[stage][np.array(samples) % len(patterns[stage])])
        terms = lowest_terms(config.stages[stage].mixture)
        shares = [terms[d] * len(samples) / sum(terms.values()) for d in domains[stage]]
        assert counts.tolist() == shares
        last = position
    assert [each.stage for each in last.skipped] == [0, 2]
    for each in last.skipped:
        taken[each.stage] += range(each.sample, each.sample + each.samples)
    for numbers in taken:
        assert sorted(numbers) == list(range(len(numbers)))


@pytest.mark.parametrize("reader", ["packed", "shuffled"])
def test_nothing_comes_twice_in_an_epoch_and_nothing_is_lost(
    data: Data, corpus: Corpus, reader: str
) -> None:
    """By the tokens of the shards that the samples are, over all stages."""
    config = run_of(data, 64, reader)
    tokens: Counter[tuple[str, int, int, int]] = Counter()
    sequences: Counter[tuple[str, int, int]] = Counter()
    last = Position()
    for position, samples in walked(config):
        if position.stage != last.stage or position.step == 0:
            blend = blend_at(config, corpus, position)
        window = [s for s in position.skipped if s not in last.skipped]
        left_out = [range(s.sample, s.sample + s.samples) for s in window]
        for sample in [*samples, *(i for numbers in left_out for i in numbers)]:
            domain, epoch, index = blend.locate(sample)
            shard, start = blend._readers[domain].place(epoch, index)
            length = blend.seq_length
            sequences[domain, length, epoch] += 1
            tokens.update((domain, epoch, shard, t) for t in range(start, start + length))
        last = position
    assert set(tokens.values()) == {1}
    for domain in BOTH:
        epochs = [{e for d, n, e in sequences if (d, n) == (domain, length)} for length in (16, 24)]
        changed, end = max(epochs[0]), max(epochs[1])
        assert end - 3 > changed > 3
        first = blend_at(config, corpus, Position())
        assert {sequences[domain, 16, e] for e in range(changed)} == {first._sizes[domain]}
        assert {sequences[domain, 24, e] for e in range(changed + 1, end)} == {blend._sizes[domain]}
        # within the epoch of the change: what is left out is said, less than a sequence per stretch
        ((length, left_out),) = blend.left_out[domain]
        order = blend._readers[domain]._order
        stretches = sum(len(order._borders(i)) - 1 for i in range(len(order.sequences)))
        given = sum(n * sequences[domain, n, changed] for n in (16, 24))
        lost = 16 * first._sizes[domain] - given - length * left_out
        assert 0 <= lost <= 23 * stretches
