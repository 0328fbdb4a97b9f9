"""Learning rate by step: borders, shapes, no jumps."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest

from loopcoder.config.compose import compose
from loopcoder.config.schema import OptimConfig, ScheduleConfig
from loopcoder.optim.schedule import branching_step, learning_rate, unreached_rate, warmup_steps

SHAPES = {
    "linear": lambda done: 1 - done,
    "1-sqrt": lambda done: 1 - done**0.5,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


def optim(kind: str, lr: float = 4e-4, min_lr: float = 4e-5, **schedule) -> OptimConfig:
    return OptimConfig(lr=lr, min_lr=min_lr, schedule=ScheduleConfig(kind=kind, **schedule))


def rates(config: OptimConfig, max_steps: int) -> list[float]:
    """The rate of every step; index 0 is the rate before the first, which is never used."""
    return [0.0] + [learning_rate(config, step, max_steps) for step in range(1, max_steps + 1)]


@pytest.fixture
def drawn(seed) -> tuple[int, int, int]:
    """max_steps, steps of warm-up, steps of decay."""
    rng = random.Random(seed)
    max_steps = rng.randint(20, 400)
    warmup = rng.randint(0, max_steps // 3)
    return max_steps, warmup, rng.randint(1, max_steps // 2)


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_warmup_is_linear_and_ends_at_the_peak(drawn, kind):
    max_steps, warmup, _ = drawn
    lr = rates(optim(kind, warmup_steps=warmup, decay_fraction=0.1), max_steps)
    assert lr[1 : warmup + 1] == pytest.approx([4e-4 * s / warmup for s in range(1, warmup + 1)])
    assert lr[warmup] == (4e-4 if warmup else 0.0)
    assert max(lr) <= 4e-4


def test_a_run_can_be_branched_from_until_it_decays(drawn):
    max_steps, warmup, decay = drawn
    lr = rates(optim("wsd", warmup_steps=warmup, decay_steps=decay), max_steps)
    step = branching_step(optim("wsd", decay_steps=decay), max_steps, warmup)
    at_peak = [s for s in range(warmup, max_steps) if lr[s] == 4e-4]
    assert step == (max_steps - decay if max_steps - decay > warmup else None)
    if step is not None:
        assert step == at_peak[-1]
    for config in (optim("cosine"), optim("constant"), optim("wsd", decay_steps=0)):
        assert branching_step(config, max_steps, warmup) is None


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
@pytest.mark.parametrize("shape", SHAPES)
def test_falls_to_the_minimum_without_rising(drawn, kind, shape):
    max_steps, warmup, decay = drawn
    config = optim(kind, warmup_steps=warmup, decay_fraction=decay / max_steps, decay_shape=shape)
    lr = rates(config, max_steps)
    assert all(a <= b for a, b in pairwise(lr[: warmup + 1]))
    assert all(a >= b for a, b in pairwise(lr[warmup + 1 :]))
    assert lr[-1] == pytest.approx(4e-5)
    # A run that goes on stays there.
    assert learning_rate(config, max_steps + 7, max_steps) == pytest.approx(4e-5)


def test_cosine(drawn):
    max_steps, warmup, _ = drawn
    lr = rates(optim("cosine", warmup_steps=warmup, decay_shape="linear"), max_steps)
    for step in range(warmup + 1, max_steps + 1):
        done = (step - warmup) / (max_steps - warmup)
        assert lr[step] == pytest.approx(4e-5 + 3.6e-4 * SHAPES["cosine"](done))


@pytest.mark.parametrize("shape", SHAPES)
def test_wsd_is_constant_and_then_decays(seed, shape):
    decay = 10 * random.Random(seed).randint(1, 9)
    config = optim("wsd", warmup_steps=5, decay_fraction=decay / 200, decay_shape=shape)
    lr = rates(config, 200)
    assert set(lr[5 : 200 - decay + 1]) == {4e-4}
    for step in range(200 - decay + 1, 201):
        done = (step - (200 - decay)) / decay
        assert lr[step] == pytest.approx(4e-5 + 3.6e-4 * SHAPES[shape](done)), step


def test_wsd_without_decay_or_with_decay_right_after_warmup():
    assert set(rates(optim("wsd", warmup_steps=0, decay_fraction=0.0), 50)[1:]) == {4e-4}
    lr = rates(optim("wsd", warmup_steps=20, decay_fraction=0.8, decay_shape="linear"), 100)
    assert lr[20] == 4e-4
    assert lr[21] == pytest.approx(4e-5 + 3.6e-4 * 79 / 80)


def test_constant_ignores_the_minimum(drawn):
    max_steps, warmup, _ = drawn
    lr = rates(optim("constant", warmup_steps=warmup), max_steps)
    assert set(lr[warmup + 1 :]) == {4e-4}


def test_wsd_goes_on_from_a_shorter_run(seed):
    """Before the decay, wsd does not know how long the run is; that is what it is for."""
    config = optim("wsd", warmup_steps=10, decay_fraction=0.1)
    stop = 90
    assert rates(config, 100)[:stop] == rates(config, random.Random(seed).randint(101, 9999))[:stop]


def test_given_steps_come_before_the_fraction():
    assert warmup_steps(optim("cosine", warmup_fraction=0.5, warmup_steps=3), 100) == 3
    assert warmup_steps(optim("cosine", warmup_fraction=0.5, warmup_steps=0), 100) == 0
    assert warmup_steps(optim("cosine", warmup_fraction=0.05), 101) == 6


# In floating point 0.07 * 100 and 0.55 * 100 are a little more than 7 and 55.
@pytest.mark.parametrize(
    ("fraction", "max_steps"), [(0.05, 100), (0.07, 100), (0.55, 100), (0.28, 50)]
)
def test_fractions_that_give_whole_steps(fraction, max_steps):
    exact = Fraction(str(fraction)) * max_steps
    assert warmup_steps(optim("cosine", warmup_fraction=fraction), max_steps) == exact
    config = optim("wsd", warmup_steps=0, decay_fraction=fraction)
    lr = rates(config, max_steps)
    assert sum(rate < 4e-4 for rate in lr[1:]) == exact


def test_more_warmup_means_a_lower_rate_in_it(drawn):
    max_steps, warmup, _ = drawn
    config = optim("cosine", warmup_steps=warmup + 1)
    longer = replace(config, schedule=replace(config.schedule, warmup_steps=warmup + 5))
    assert learning_rate(longer, 1, max_steps) < learning_rate(config, 1, max_steps)


@pytest.mark.parametrize("none", [dict(decay_steps=0), dict(decay_fraction=0.0)])
def test_a_decay_of_no_steps_stays_at_the_peak(drawn, none):
    max_steps, warmup, _ = drawn
    lr = rates(optim("wsd", warmup_steps=warmup, **none), max_steps)
    assert lr == rates(optim("constant", warmup_steps=warmup), max_steps)


@pytest.mark.parametrize(
    ("steps", "last", "share"), [(200, 5, "0.025"), (10, 9, "0.9"), (3, 1, "0.33")]
)
def test_a_run_that_ends_before_embedding_and_head_have_warmed_up(
    steps: int, last: int, share: str
) -> None:
    optim = compose([f"optim.vocabulary_warmup_steps={steps}"]).optim
    said = unreached_rate(optim, last) or ""
    assert f"end at {share} of their rate" in said
    assert f"vocabulary_warmup_steps={steps} " in said and said.endswith(f"max_steps={last}")
    assert unreached_rate(optim, steps) is None
    assert unreached_rate(compose([]).optim, 1) is None
