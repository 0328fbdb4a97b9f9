"""phi: how many layers of its own a further pass through the same layers is worth.

arXiv 2604.21106 fits L = E + A (N_once + R^phi N_looped)^-alpha + B D^-beta to the losses of runs
of many sizes and lengths: R loops count as R^phi times the looped weights. phi = 1: as good as R
times the layers; phi = 0: nothing gained.

A sweep has one size, so we estimate the same phi locally. All layers are looped, and neither the
embedding nor the head is counted, so N_once is 0. The dense model with twice the layers measures
what a doubling of the weights brings at this size and length. The loss is taken as linear in the
logarithm of the weights through these two points: R^phi times the layers then lower it by
phi log2(R) times as much. (The law is convex, so this is local: for R = 4 and a phi near 1 it
extrapolates.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loopcoder.metrics.seeds import BySeed

RESAMPLES = 10_000


@dataclass(frozen=True)
class Phi:
    """An estimate of phi."""

    loops: tuple[int, ...]
    """The R that it was fitted to, besides R = 1."""
    value: float
    interval: tuple[float, float] | None
    """95% by bootstrap over seeds; None with one seed, or where twice the layers do not help with
    every seed: phi has no bounds then."""
    seeds: int


def estimate_phi(one: BySeed, dense: BySeed, looped: Mapping[int, BySeed]) -> Phi | None:
    """Estimate phi from validation losses, by least squares in log R.

    With g = one - dense the estimate minimises the sum over R of (one - loss_R - phi g log2 R)^2.
    For R = 2 alone it is (one - loss) / g. The interval is the percentile bootstrap: seeds are
    drawn with replacement, each with all its runs. With three seeds it is on the narrow side.

    Args:
        one: Losses of R = 1.
        dense: Losses of R = 1 with twice the layers.
        looped: Losses by R, all above 1.

    Returns:
        None where no seed has all of the runs, or twice the layers are not better on average.
    """
    loops = tuple(sorted(looped))
    runs = [one, dense, *(looped[r] for r in loops)]
    seeds = sorted(set.intersection(*(set(losses) for losses in runs)))
    if not loops or not seeds:
        return None
    losses = np.array([[losses[seed] for seed in seeds] for losses in runs])
    value, gain = _fit(losses.mean(axis=1), loops)
    if not gain > 0:
        return None
    interval = None
    if len(seeds) > 1:
        draws = np.random.default_rng(0).integers(len(seeds), size=(RESAMPLES, len(seeds)))
        values, gains = _fit(losses[:, draws].mean(axis=2), loops)
        if (gains > 0).all():
            low, high = np.percentile(values, [2.5, 97.5])
            interval = (float(low), float(high))
    return Phi(loops, float(value), interval, len(seeds))


def _fit(
    losses: NDArray[np.float64], loops: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return phi and g for losses [2 + number of R, ...]: of R = 1, of twice the layers, by R."""
    doublings = np.log2(np.array(loops))
    gain = losses[0] - losses[1]
    of_loops = np.tensordot(doublings, losses[0] - losses[2:], axes=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return of_loops / (gain * (doublings**2).sum()), gain
