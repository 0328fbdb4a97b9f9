"""Means, standard errors and paired differences over seeds."""

from __future__ import annotations

import math
import random

import pytest

from loopcoder.metrics.seeds import Mean, mean_of, paired_difference


def test_the_standard_error_is_that_of_the_mean() -> None:
    found = mean_of([1.0, 2.0, 6.0])
    assert found == Mean(3.0, pytest.approx(math.sqrt(7 / 3)), 3)  # squares 4 + 1 + 9, over 2
    assert mean_of([1.5]) == Mean(1.5, None, 1)
    assert mean_of([]) is None


def test_a_difference_is_paired_by_seed(rng: random.Random) -> None:
    """What a seed does to both runs cancels; a seed that only one of them has is left out."""
    seeds = rng.sample(range(100), 4)
    of_seed = {seed: rng.uniform(-1, 1) for seed in seeds}
    one = {seed: 3.0 + of_seed[seed] for seed in seeds}
    two = {seed: 2.9 + of_seed[seed] for seed in reversed(seeds[:3])}
    found = paired_difference(two, one)
    assert found is not None and found.error is not None and found.seeds == 3
    assert (found.mean, found.error) == pytest.approx((-0.1, 0.0), abs=1e-12)
    assert paired_difference({1: 2.0, 2: 3.0}, {1: 1.5, 2: 2.0}) == Mean(0.75, 0.25, 2)
    assert paired_difference({1: 2.0}, {2: 2.0}) is None
