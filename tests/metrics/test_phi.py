"""phi is recovered from losses made with a known one."""

from __future__ import annotations

import math
import random

import pytest

from loopcoder.metrics.phi import Phi, estimate_phi


def losses(phi: float, loops: int, *, gain: float = 0.1, one: float = 3.3) -> float:
    """Return the loss of R loops where a doubling of the layers brings `gain` nats."""
    return one - gain * phi * math.log2(loops)


def test_a_known_phi_is_found(rng: random.Random) -> None:
    phi, gain = rng.uniform(-0.5, 1.5), rng.uniform(0.01, 0.3)
    looped = {r: {1: losses(phi, r, gain=gain)} for r in (2, 3, 4)}
    one, dense = {1: 3.3}, {1: 3.3 - gain}
    found = estimate_phi(one, dense, looped)
    assert found == Phi((2, 3, 4), pytest.approx(phi), None, 1)
    for r, loss in looped.items():
        single = estimate_phi(one, dense, {r: loss})
        assert single is not None and single.value == pytest.approx(phi)


def test_two_loops_as_good_as_twice_the_layers_are_worth_one() -> None:
    found = estimate_phi({1: 3.0}, {1: 2.9}, {2: {1: 2.9}})
    assert found is not None and found.value == pytest.approx(1.0)
    found = estimate_phi({1: 3.0}, {1: 2.9}, {2: {1: 3.0}})
    assert found is not None and found.value == pytest.approx(0.0)


def test_the_fit_weighs_by_the_logarithm_of_the_loops() -> None:
    # Gains of 0.06 and 0.10 at 1 and 2 doublings of 0.1 each: (0.06 + 2 * 0.10) / (0.1 * (1 + 4)).
    found = estimate_phi({1: 3.0}, {1: 2.9}, {2: {1: 2.94}, 4: {1: 2.9}})
    assert found is not None and found.value == pytest.approx(0.52)


def test_the_interval_covers_what_the_seeds_say() -> None:
    one = dict.fromkeys(range(4), 3.0)
    dense = dict.fromkeys(range(4), 2.9)
    by_seed = [0.4, 0.45, 0.5, 0.55]
    two = {seed: losses(phi, 2, one=3.0) for seed, phi in enumerate(by_seed)}
    found = estimate_phi(one, dense, {2: two})
    assert found is not None and found.interval is not None and found.seeds == 4
    low, high = found.interval
    assert found.value == pytest.approx(0.475)
    # The mean of four draws; its percentiles lie about 1.96 * s / sqrt(4) away, s = 0.056.
    assert (low, high) == pytest.approx((0.42, 0.53), abs=0.015)
    assert estimate_phi(one, dense, {2: two}) == found  # the draws are the same each time


def test_seeds_alike_have_an_interval_without_width() -> None:
    runs = [{seed: loss + seed for seed in (1, 2, 3)} for loss in (3.0, 2.9, 2.95)]
    found = estimate_phi(runs[0], runs[1], {2: runs[2]})
    assert found is not None and found.interval == pytest.approx((0.5, 0.5))


def test_without_a_gain_of_depth_there_is_no_phi() -> None:
    assert estimate_phi({1: 3.0}, {1: 3.0}, {2: {1: 2.9}}) is None
    assert estimate_phi({1: math.nan}, {1: 3.0}, {2: {1: 2.9}}) is None
    # With one of the seeds only: a value, but a resample of that seed alone has no bounds.
    found = estimate_phi({1: 3.0, 2: 3.0}, {1: 2.8, 2: 3.02}, {2: {1: 2.9, 2: 2.9}})
    assert found is not None and found.interval is None and found.seeds == 2


def test_only_seeds_with_all_runs_count() -> None:
    one, dense = {1: 3.0, 2: 9.0}, {1: 2.9, 3: 9.0}
    found = estimate_phi(one, dense, {2: {1: 2.96, 2: 9.0, 3: 9.0}})
    assert found is not None and (found.value, found.seeds) == (pytest.approx(0.4), 1)
    assert estimate_phi(one, {3: 2.9}, {2: {1: 2.96}}) is None
    assert estimate_phi(one, dense, {}) is None
