"""Means, shares and medians over tokens, with 95% intervals.

Tokens of one sequence are alike; sequences are what is drawn independently. A mean over tokens is
then a ratio of two sums that differ from sequence to sequence, and its error is that of the
residuals of whole sequences (the linearised ratio estimator of survey sampling: Cochran, Sampling
Techniques, 1977, chapter 6), with Student's t for the sequences that there are. Intervals need two
sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """Numbers, or nested lists of them in the shape that was asked for; None: not defined."""

    value: Any
    low: Any
    """Bounds of the 95% interval; None with fewer than two sequences."""
    high: Any
    count: Any
    """Tokens, queries or sequences that `value` is of."""


def mean_of(sums: Tensor, counts: Tensor) -> Estimate:
    """Return the mean over all that was counted.

    Args:
        sums, counts: of each sequence; one that has none of the kind has zeros. [n, ...] both

    Raises:
        ValueError: a sum is not finite.
    """
    sums, counts = _exact(sums), _exact(counts).expand(sums.shape)
    total = counts.sum(0)
    value = sums.sum(0) / total
    errors = (sums - value * counts) / total
    return _estimate(value, errors[:, None], (counts > 0)[:, None], total)


def weighted_mean_of(sums: Tensor, counts: Tensor, weights: Tensor) -> Estimate:
    """Return the mean of the means of several domains, weighted as in a mixture.

    A sequence may have tokens of one domain or of several. The interval needs two sequences of each
    domain that has a weight, the value one.

    Args:
        sums, counts: of each sequence and domain. [n, domains, ...] both
        weights: of the domains, in any unit. [domains]

    Raises:
        ValueError: a sum is not finite.
    """
    sums, counts = _exact(sums), _exact(counts).expand(sums.shape)
    chosen = weights > 0
    sums, counts, share = sums[:, chosen], counts[:, chosen], _exact(weights[chosen])
    share = (share / share.sum()).view(-1, *[1] * (sums.ndim - 2))
    total = counts.sum(0)
    means = sums.sum(0) / total
    errors = share * (sums - means * counts) / total
    return _estimate((share * means).sum(0), errors, counts > 0, total.sum(0))


def share_of(sums: Tensor, counts: Tensor) -> Estimate:
    """Return what share each of several sums has in their total.

    Args:
        sums: of each sequence and part, as the output shift of each loop. [n, parts, ...]
        counts: tokens or queries that these are of. [n, parts, ...]

    Returns:
        an estimate for each part, [parts, ...]; not defined where the total is zero.

    Raises:
        ValueError: a sum is not finite.
    """
    sums, counts = _exact(sums), _exact(counts).expand(sums.shape)
    of_sequence = sums.sum(1, keepdim=True)
    total = of_sequence.sum(0)
    value = sums.sum(0) / total
    errors = (sums - value * of_sequence) / total
    return _estimate(value, errors[:, None], (counts > 0)[:, None], counts.sum(0))


def median_of(histograms: Tensor, values: Tensor | None = None) -> Estimate:
    """Return the median of what was counted: the smallest value that half of it does not exceed.

    The interval is Woodruff's (1952): that of the share at or below the median, carried over to the
    values that have the shares at its ends.

    Args:
        histograms: how often each value occurs in a sequence, or with what weight. [n, bins]
        values: of the bins, ascending. [bins]; None: 1, 2, 3, ..., as of ranks
    """
    counts = _exact(histograms)
    below = counts.sum(0).cumsum(0)
    total = float(below[-1])
    if not total:
        return Estimate(None, None, None, 0)

    def quantile(share: float) -> float:
        place = int(((below < min(share, 1) * total) | (below == 0)).sum())
        return float(place + 1 if values is None else values[place])

    place = int((below < total / 2).sum())
    share = mean_of(counts[:, : place + 1].sum(1), counts.sum(1))
    if share.low is None:
        return Estimate(quantile(0.5), None, None, round(total))
    half = (share.high - share.low) / 2
    return Estimate(quantile(0.5), quantile(0.5 - half), quantile(0.5 + half), round(total))


@cache
def t_quantile(degrees: int) -> float:
    """Return the t for which |T| <= t in 95 of 100 cases, T of Student with `degrees`."""
    low, high = 0.0, math.pi / 2  # of the angle atan(t / sqrt(degrees))
    for _ in range(60):
        middle = (low + high) / 2
        inside = _within(middle, degrees) < CONFIDENCE
        low, high = (middle, high) if inside else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _within(angle: float, degrees: int) -> float:
    """P(|T| <= tan(angle) sqrt(degrees)), by the finite sums of Abramowitz and Stegun, 26.7.3-4."""
    odd = degrees % 2
    cosine = math.cos(angle)
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def _exact(x: Tensor) -> Tensor:
    x = x.detach().to("cpu", torch.float64)
    if not x.isfinite().all():
        raise ValueError("a sum or count is not finite: leave such values out, and count them")
    return x


def _estimate(value: Tensor, errors: Tensor, present: Tensor, total: Tensor) -> Estimate:
    """Put together a value and its interval.

    Args:
        value, total: [...]
        errors: what each sequence adds to the error of the value, in each of several strata that
            are drawn apart. [n, strata, ...]
        present: whether a sequence has anything of the stratum. [n, strata, ...]
    """
    units = present.sum(0).double()
    correction = units / (units - 1)  # of a variance, for the mean that is taken off
    by_stratum = correction * errors.square().sum(0)
    variance = (errors * correction.sqrt()).sum(1).square().sum(0)
    # Satterthwaite's degrees of freedom; n - 1 with one stratum.
    spread = (by_stratum.square() / (units - 1)).sum(0)
    degrees = torch.where(spread > 0, by_stratum.sum(0).square() / spread, (units - 1).sum(0))
    whole = degrees.nan_to_num(1, 1, 1).clamp_min(1).add(1e-6).flatten().tolist()
    t = torch.tensor([t_quantile(int(d)) for d in whole], dtype=torch.float64)
    half = t.view(variance.shape) * variance.sqrt()
    half = half.where((units > 1).all(0), torch.nan)
    low, high, count = value - half, value + half, total.round().long()
    return Estimate(_listed(value), _listed(low), _listed(high), _listed(count))


def _listed(x: Tensor) -> Any:
    """Return nested lists, or a number for [], with None in place of NaN."""
    if x.ndim:
        return [_listed(part) for part in x]
    number = x.item()
    return None if math.isnan(number) else number
