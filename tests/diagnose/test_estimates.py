"""Intervals of means, shares and medians: known answers, and how often they hold the truth."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from loopcoder.diagnose.estimates import (
    mean_of,
    median_of,
    share_of,
    t_quantile,
    weighted_mean_of,
)


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("degrees", "t"),
    [(1, 12.7062047), (2, 4.3026527), (3, 3.1824463), (10, 2.2281389), (63, 1.9983405)],
)
def test_students_t_is_that_of_the_tables(degrees: int, t: float) -> None:
    assert t_quantile(degrees) == pytest.approx(t, abs=1e-6)
    assert t_quantile(10**4) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=3e-4)


def test_with_equal_counts_it_is_the_t_interval_of_the_sequences(generator) -> None:
    values = torch.randn(7, generator=generator, dtype=torch.float64)
    found = mean_of(values * 5, torch.full((7,), 5))
    error = statistics.stdev(values.tolist()) / math.sqrt(7)
    mean = statistics.fmean(values.tolist())
    assert found.value == pytest.approx(mean)
    half = pytest.approx(2.446911851 * error, rel=1e-9)
    assert found.high - mean == half and mean - found.low == half
    assert found.count == 35


def test_what_is_not_defined_is_none(generator) -> None:
    sums = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    counts = torch.tensor([[1, 2, 0], [1, 0, 0]])
    found = mean_of(sums, counts)
    assert found.value == [2.0, 1.0, None]
    assert found.count == [2, 2, 0]
    assert found.low[0] is not None and found.low[1:] == [None, None]
    assert found.high[1:] == [None, None]
    one = mean_of(sums[:1], counts[:1])
    assert one.value == [1.0, 1.0, None] and one.low == one.high == [None] * 3
    assert mean_of(torch.tensor([3.0]), torch.tensor([2])).low is None
    with pytest.raises(ValueError, match="not finite"):
        mean_of(torch.tensor([1.0, torch.inf]), torch.tensor([1, 1]))


def clustered(generator, sequences: int, draws: int, *, effect: float) -> tuple:
    """Return sums and counts [sequences, draws] of tokens that sequences shift by `effect`, more
    tokens by more, and their true mean."""
    counts = torch.randint(1, 40, (sequences, draws), generator=generator).double()
    shift = effect * torch.randn(counts.shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(counts.shape, generator=generator, dtype=torch.float64)
    sums = counts * (2 + shift + counts / 40) + counts.sqrt() * noise
    # counts are uniform on 1..39: E[c] = 20, E[c^2] = 39 * 40 * 79 / 6 / 39
    return sums, counts, 2 + (40 * 79 / 6) / 40 / 20


def held(estimate, truth: float) -> float:
    low, high = torch.tensor(estimate.low), torch.tensor(estimate.high)
    return float(((low <= truth) & (truth <= high)).double().mean())


def test_intervals_hold_the_mean_in_95_of_100_cases(generator) -> None:
    sums, counts, truth = clustered(generator, 40, 3000, effect=1.0)
    assert 0.92 < held(mean_of(sums, counts), truth) < 0.98
    # As if tokens were drawn independently, it would be far from that.
    tokens = mean_of(sums.flatten(), counts.flatten())
    assert tokens.value == pytest.approx(truth, abs=0.05)


def test_a_weighted_mean_is_that_of_the_mixture(generator) -> None:
    """Each sequence has one domain; in the second case, tokens of all."""
    draws, sizes, weights = 2000, (6, 12, 25), torch.tensor([5.0, 3.0, 2.0])
    apart = torch.zeros(2, sum(sizes), 3, draws, dtype=torch.float64)
    mixed = torch.zeros(2, 30, 3, draws, dtype=torch.float64)
    truth, row = 0.0, 0
    for domain, size in enumerate(sizes):
        here = slice(row, row + size)
        sums, counts, mean = clustered(generator, size, draws, effect=1 + domain)
        apart[0, here, domain], apart[1, here, domain] = sums + domain * counts, counts
        sums, counts, _ = clustered(generator, 30, draws, effect=1 + domain)
        mixed[0, :, domain], mixed[1, :, domain] = sums + domain * counts, counts
        truth += float(weights[domain] / 10) * (mean + domain)
        row += size
    for sums, counts in (apart, mixed):
        found = weighted_mean_of(sums, counts, weights)
        assert statistics.fmean(found.value) == pytest.approx(truth, abs=0.1)
        # a mean per token of so few sequences is held in 93 of 100 cases
        assert 0.90 < held(found, truth) < 0.98
    none = weighted_mean_of(*apart[..., 0], torch.tensor([0.0, 0.0, 1.0]))
    plain = mean_of(*apart[:, -25:, 2, 0])
    assert [none.value, none.low, none.high] == pytest.approx([plain.value, plain.low, plain.high])
    rare = weighted_mean_of(*apart[:, 5:, :, 0], weights)  # one sequence of the first domain
    assert rare.value is not None and rare.low is rare.high is None


def test_shares_add_up_and_intervals_hold_them(generator) -> None:
    parts = [clustered(generator, 40, 2000, effect=0.3) for _ in range(3)]
    counts = parts[0][1][:, None].expand(-1, 3, -1)
    base = torch.stack([sums / c for sums, c, _ in parts], 1) + 2
    sums = base * torch.tensor([1.0, 2.0, 3.0])[:, None] * counts
    found = share_of(sums, counts)
    assert torch.tensor(found.value).sum(0).allclose(torch.ones(()))
    truth = mean_of(sums.transpose(0, 1).flatten(1).T, counts.transpose(0, 1).flatten(1).T).value
    for part in range(3):
        share = truth[part] / sum(truth)  # of the sequences of all draws
        pairs = zip(found.low[part], found.high[part], strict=True)
        inside = [low <= share <= high for low, high in pairs]
        assert 0.92 < statistics.fmean(inside) < 0.98
    assert share_of(torch.zeros(4, 2), torch.ones(4, 2)).value == [None, None]


def test_the_median_is_that_of_all_tokens(generator) -> None:
    ranks = [torch.randint(1, 50, (n,), generator=generator) for n in (3, 80, 41)]
    found = median_of(torch.stack([torch.bincount(r - 1, minlength=60) for r in ranks]))
    assert found.value == float(torch.cat(ranks).median())  # the lower one of two, as here
    assert found.low <= found.value <= found.high and found.count == 124
    occurring = torch.cat(ranks).unique()
    packed = torch.stack([(r[:, None] == occurring).sum(0) for r in ranks])
    assert median_of(packed, occurring) == found
    halved = median_of(packed / 256, occurring)  # weights need not be whole
    assert (halved.value, halved.low, halved.high) == (found.value, found.low, found.high)
    assert median_of(packed[:1], occurring).low is None
    assert median_of(torch.zeros(3, 5)).value is None
    wide = median_of(torch.tensor([[0, 0, 9, 0, 0], [0, 0, 0, 9, 0]]))
    assert (wide.low, wide.high) == (3, 4)  # no value that does not occur


def test_intervals_hold_the_median_in_95_of_100_cases(generator) -> None:
    sequences, tokens, draws = 40, 30, 600
    centre = 400 + 60 * torch.randn(draws, sequences, 1, generator=generator)
    values = centre + 60 * torch.randn(draws, sequences, tokens, generator=generator)
    inside = 0
    for draw in values.round().long().clamp(1, 1000):
        histogram = torch.zeros(sequences, 1000, dtype=torch.long)
        histogram.scatter_add_(1, draw - 1, torch.ones_like(draw))
        found = median_of(histogram)
        inside += found.low <= 400 <= found.high
    assert 0.90 < inside / draws < 0.99
