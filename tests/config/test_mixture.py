"""Proportions in whole numbers."""

from __future__ import annotations

import random
from fractions import Fraction
from math import gcd

import pytest

from loopcoder.config.check import batch_unit
from loopcoder.config.mixture import lowest_terms, without
from loopcoder.data.sampler import Mixture
from loopcoder.errors import InputError


def test_lowest_terms_are_the_mixture_and_the_smallest(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(10):
        names = rng.sample(["text", "code", "math", "art"], rng.randint(1, 4))
        mixture = {name: rng.randint(1, 400) / rng.choice((1, 8, 10, 100)) for name in names}
        terms = lowest_terms(mixture)
        assert gcd(*terms.values()) == 1
        whole = sum(Fraction(str(weight)) for weight in mixture.values())
        for name, weight in mixture.items():
            assert Fraction(terms[name], sum(terms.values())) == Fraction(str(weight)) / whole
        # a batch, and the period of the order of samples, are made of the same numbers
        assert batch_unit(mixture) == len(Mixture(mixture).pattern) == sum(terms.values())


def test_text_comes_before_code_before_the_others() -> None:
    assert list(lowest_terms({"math": 3, "code": 1.5, "art": 6, "text": 0.5})) == [
        "text", "code", "art", "math",
    ]  # fmt: skip


@pytest.mark.parametrize("mixture", [{}, {"text": 1, "code": 0}, {"text": -1.0}])
def test_what_is_no_proportion_is_refused(mixture: dict[str, float]) -> None:
    with pytest.raises(InputError, match="positive weight"):
        lowest_terms(mixture)


def test_without_a_domain() -> None:
    assert without({"text": 1, "code": 3}, "text") == "'data.mixture={code:3}'"
    left = without({"text": 1.0, "code": 1.5, "sql": 2}, "code")
    assert left == "'data.mixture={text:1,sql:2}'"
    assert without({"text": 1}, "text") is None
