"""How many loops steps run: reproducible, in range, distributed as it is said."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from loopcoder.config.objective import ObjectiveConfig
from loopcoder.config.schema import Config
from loopcoder.model.step_objective import loops_of_step, shares_of_counts, step_objective
from tests.configs import small_config

STEPS = 4000


def config_of(num_loops: int, seed: int, **objective: Any) -> Config:
    return replace(
        small_config(dict(num_loops=num_loops)), seed=seed, objective=ObjectiveConfig(**objective)
    )


def log_normal_poisson(
    rng: np.random.Generator, mean: float, sigma: float, most: int, least: int
) -> np.ndarray[Any, Any]:
    """Draw as arXiv 2502.05171 says, then clip."""
    tau = rng.normal(np.log(mean) - sigma**2 / 2, sigma, 200_000)
    return np.clip(rng.poisson(np.exp(tau)) + 1, least, most)


CASES = [
    (4, dict(loop_count="uniform")),
    (5, dict(loop_count="uniform", min_loops=3)),
    (3, dict(loop_count="poisson")),
    (6, dict(loop_count="poisson", mean_loops=2.5, loop_sigma=0.8, min_loops=2)),
    (4, dict(loop_count="poisson", mean_loops=9, loop_sigma=0)),
]


@pytest.mark.parametrize(("most", "fields"), CASES, ids=str)
def test_counts_have_the_distribution_that_is_asked_for(
    seed: int, most: int, fields: dict[str, Any]
) -> None:
    config = config_of(most, seed, **fields)
    objective = config.objective
    counts = Counter(loops_of_step(config, step) for step in range(1, STEPS + 1))
    shares = shares_of_counts(objective, most)
    assert sum(shares.values()) == pytest.approx(1)
    assert counts.keys() <= shares.keys() == set(range(objective.min_loops, most + 1))
    for loops, share in shares.items():
        # six standard deviations
        assert abs(counts[loops] - share * STEPS) <= 6 * (share * (1 - share) * STEPS) ** 0.5
    if objective.loop_count == "poisson":
        mean = objective.mean_loops or most - 1
        sigma, least = objective.loop_sigma, objective.min_loops
        drawn = log_normal_poisson(np.random.default_rng(seed), mean, sigma, most, least)
        for loops, share in shares.items():
            assert share == pytest.approx((drawn == loops).mean(), abs=6 * 0.5 / len(drawn) ** 0.5)


def test_a_draw_depends_on_seed_and_step_alone(rng: random.Random) -> None:
    seed = rng.randrange(2**31)
    config = config_of(4, seed, loop_count="uniform")
    drawn = [loops_of_step(config, step) for step in range(1, 65)]
    steps = list(range(1, 65))
    rng.shuffle(steps)
    again = {step: loops_of_step(config, step) for step in steps}
    assert drawn == [again[step] for step in range(1, 65)]
    assert drawn != [loops_of_step(replace(config, seed=seed + 1), s) for s in range(1, 65)]
    other = replace(config, train=replace(config.train, micro_batch_size=1))
    assert drawn == [loops_of_step(other, step) for step in range(1, 65)]
    fixed = config_of(4, seed)
    assert {loops_of_step(fixed, step) for step in range(1, 65)} == {4}


def test_weights_are_those_of_the_loops_that_run() -> None:
    objective = ObjectiveConfig(loop_weights=[1, 0, 3])
    assert step_objective(objective, 3, 3).weights == (0.25, 0, 0.75)
    assert step_objective(objective, 3, 2).weights == (1, 0)
    read = [step_objective(objective, 3, loops).read_loops for loops in (1, 2, 3)]
    assert read == [(0,), (0, 1), (0, 2)]
    assert step_objective(ObjectiveConfig(), 3, 2).read_loops == (1,)
    assert step_objective(ObjectiveConfig(exit=True), 3, 2).read_loops == (0, 1)
    # an evaluation with one loop of a model that was trained with more has no exit gate
    assert step_objective(ObjectiveConfig(exit=True), 1, 1).exit_entropy is None
