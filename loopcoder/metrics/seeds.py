"""What several seeds say: a mean, its standard error, a difference paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BySeed = Mapping[int, float]
"""One value for each seed."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds."""

    mean: float
    error: float | None
    """Standard error of the mean, s / sqrt(n); None with one seed."""
    seeds: int
    """How many there are."""


def mean_of(values: Sequence[float]) -> Mean | None:
    """Return the mean of one value per seed, or None without any."""
    if not values:
        return None
    count = len(values)
    error = statistics.stdev(values) / math.sqrt(count) if count > 1 else None
    return Mean(statistics.fmean(values), error, count)


def paired_difference(of: BySeed, to: BySeed) -> Mean | None:
    """Return the mean of `of - to` over the seeds that both have, or None without any.

    Runs of one seed read the same data in the same order, so what a seed does to both of them
    cancels: the error is that of the differences, not of the two means.
    """
    return mean_of([of[seed] - to[seed] for seed in of.keys() & to.keys()])
