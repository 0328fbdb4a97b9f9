"""Draws of tokens, against definitions written out for one row at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from loopcoder.infer import sampling
from loopcoder.infer.request import Sampling
from loopcoder.infer.sampling import Draws, best, draw, logprobs, next_tokens

ALL = Sampling(temperature=1.0)
SETTINGS = [
    ALL,
    Sampling(temperature=0.3),
    Sampling(temperature=2.5, top_k=7),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=1.0, top_p=0.6),
    Sampling(temperature=0.7, top_k=20, top_p=0.8),
    Sampling(temperature=1.0, min_p=0.1),
    Sampling(temperature=1.3, top_k=30, top_p=0.9, min_p=0.05),
    Sampling(temperature=1.0, top_k=10_000, top_p=1e-6),
    Sampling(temperature=1e-30),
]


def probabilities(logits: NDArray[np.float64], s: Sampling) -> NDArray[np.float64]:
    """Return the distribution that is drawn from, by the words of `Sampling`."""
    scaled = (logits - logits.max()) / s.temperature
    p = np.exp(scaled) / np.exp(scaled).sum()
    order = sorted(range(len(p)), key=lambda i: (-logits[i], i))
    if s.top_k:
        order = order[: s.top_k]
    reached, kept = 0.0, []
    for i in order:
        if reached >= s.top_p:
            break
        kept.append(i)
        reached += p[i] / p[order].sum()
    kept = [i for i in kept if p[i] >= s.min_p * p.max()]
    out = np.zeros_like(p)
    out[kept] = p[kept] / p[kept].sum()
    return out


@pytest.mark.parametrize("sampling", SETTINGS, ids=repr)
def test_numbers_are_spread_over_tokens_as_the_distribution_says(
    sampling: Sampling, seed: int
) -> None:
    """Numbers that are evenly spread give every token its share, to one of them at each end."""
    torch.manual_seed(seed)
    logits, count = 2 * torch.randn(60), 4000
    even = [(i + 0.5) / count for i in range(count)]
    ids = draw(logits.expand(count, -1), [sampling] * count, even)
    wanted = probabilities(logits.double().numpy(), sampling)
    found = np.bincount(ids.numpy(), minlength=60)
    assert np.abs(found - count * wanted).max() <= 1.001
    assert not found[wanted == 0].any()


def test_each_row_is_drawn_by_its_own_settings(seed: int) -> None:
    torch.manual_seed(seed)
    logits = 2 * torch.randn(len(SETTINGS), 60)
    numbers = torch.rand(len(SETTINGS)).tolist()
    together = draw(logits, SETTINGS, numbers)
    alone = [
        draw(logits[i : i + 1], [s], [n])[0]
        for i, (s, n) in enumerate(zip(SETTINGS, numbers, strict=True))
    ]
    assert together.tolist() == [int(a) for a in alone]


def test_frequencies_of_seeded_draws() -> None:
    """Chi-square with 9 degrees of freedom: above 60 with p < 2e-9. The seed is fixed."""
    logits, count = torch.linspace(0, 2, 10), 5000
    row, found = Draws(Sampling(temperature=1.0, seed=11)), np.zeros(10)
    for _ in range(count // 50):
        numbers = [row.next_number() for _ in range(50)]
        found += np.bincount(draw(logits.expand(50, -1), [ALL] * 50, numbers), minlength=10)
    wanted = count * probabilities(logits.double().numpy(), ALL)
    assert ((found - wanted) ** 2 / wanted).sum() < 60


def test_a_seed_gives_the_same_tokens_whatever_runs_beside_it(seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(30, 50)
    drawn = Sampling(temperature=1.0, seed=3)

    def tokens(beside: list[Sampling]) -> list[int]:
        rows = [Draws(s) for s in [*beside, drawn]]
        return [next_tokens(x.expand(len(rows), -1), rows)[-1].id for x in logits]

    alone = tokens([])
    assert alone == tokens([Sampling(), Sampling(temperature=2.0, top_k=3), drawn])
    assert alone != tokens([])[::-1] and len(set(alone)) > 5
    others = [next_tokens(x[None], [Draws(Sampling(temperature=1.0))])[0].id for x in logits]
    assert alone != others


def test_of_equal_logits_the_lowest_id_is_best(seed: int) -> None:
    """Few values, both zeros and negative ones among them, so that most are equal to others."""
    torch.manual_seed(seed)
    logits = torch.tensor([-2.5, -1.0, -0.0, 0.0, 0.5, -math.inf])[torch.randint(6, (8, 40))]
    for number in (1, 5, 39, 40):
        values, ids = best(logits, number)
        for row, own_values, own in zip(
            logits.tolist(), values.tolist(), ids.tolist(), strict=True
        ):
            wanted = sorted(range(40), key=lambda i: (-row[i], i))[:number]
            assert own == wanted and own_values == [row[i] for i in wanted]
    greedy = next_tokens(logits, [Draws(Sampling())] * 8)
    assert [t.id for t in greedy] == best(logits, 1)[1][:, 0].tolist()


def test_logprobs_are_those_of_the_model_and_hold_the_greedy_token(seed: int) -> None:
    torch.manual_seed(seed)
    logits = 3 * torch.randn(40, 200)
    # ties, and neighbours that are equal once the sum is taken away
    logits[:20] = logits[:20].round() * 1e-6
    wants = [None, 0, 1, 5]
    rows = [Draws(Sampling(temperature=1.0 * (i % 2)), wants[i % 4]) for i in range(40)]
    exact = logits.double().log_softmax(-1)
    for i, token in enumerate(next_tokens(logits, rows)):
        want = rows[i].logprobs
        if want is None:
            assert token.logprob is None and not token.top
            continue
        assert token.logprob == pytest.approx(float(exact[i, token.id]), abs=1e-5)
        assert len(token.top) == want
        for other, value in token.top:
            assert value == pytest.approx(float(exact[i, other]), abs=1e-5)
        if rows[i].is_greedy and want:
            assert token.top[0] == (token.id, token.logprob)
            assert token.logprob == max(value for _, value in token.top)


def test_greedy_rows_come_with_the_best_of_several(seed: int) -> None:
    """What lm-eval calls greedy: the token's value is the largest, as floats."""
    torch.manual_seed(seed)
    logits = torch.randn(64, 300)
    own, top, ids = logprobs(logits, logits.argmax(-1), 4)
    assert torch.equal(own[:, 0], top.max(-1).values)
    assert torch.equal(ids[:, 0], logits.argmax(-1))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_no_token(wrong: float) -> None:
    logits = torch.zeros(2, 8)
    logits[1, 3] = wrong
    for s in (Sampling(), Sampling(temperature=1.0)):
        with pytest.raises(FloatingPointError):
            next_tokens(logits, [Draws(s)] * 2)


def test_every_seed_of_64_bits_has_draws_of_its_own() -> None:
    def drawn(seed: int) -> list[float]:
        draws = Draws(Sampling(temperature=1.0, seed=seed))
        return [draws.next_number() for _ in range(3)]

    seeds = (0, 1, -1, 2, -2, 2**63, -(2**63) + 1, 2**64 - 3)
    assert len({tuple(drawn(seed)) for seed in seeds}) == len(seeds)
    assert drawn(-1) == drawn(-1) == drawn(2**64 - 1)


def test_the_log_probability_of_a_token_alone_looks_for_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "best", lambda *_: pytest.fail("others are looked for"))
    logits, ids = torch.randn(4, 9), torch.randint(9, (4,))
    own, values, top = sampling.logprobs(logits, ids, 0)
    torch.testing.assert_close(own, logits.log_softmax(-1).gather(-1, ids[:, None]))
    assert values.shape == top.shape == (4, 0)
