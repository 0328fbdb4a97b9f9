"""Losses by domain of several corpora: over all of them, and of each."""

from __future__ import annotations

import math
import random

import pytest
import torch

from loopcoder.train.by_domain import loss_fields, over_corpora
from loopcoder.train.validation import _fields


def test_one_corpus_has_its_domains() -> None:
    assert loss_fields(("text", "code"), [6.0, 0.0], [2.0, 0.0]) == {"loss/text": 3.0}
    assert over_corpora({"text": torch.ones(3)}, {"text": 1.0}) == {}


def test_a_domain_is_the_mean_over_its_corpora(rng: random.Random) -> None:
    domains = ("a/text", "a/code", "b/code", "c/code")
    losses = [rng.uniform(1, 9) for _ in domains]
    tokens = [float(rng.randrange(1, 9)) for _ in domains[:-1]] + [0.0]
    found = loss_fields(domains, losses, tokens)
    assert found.keys() == {
        "loss/text", "loss/code", *(f"loss/corpus/{d}" for d in domains[:-1])
    }  # fmt: skip
    code = (losses[1] + losses[2] + losses[3]) / (tokens[1] + tokens[2])
    assert found["loss/code"] == pytest.approx(code, rel=1e-12)
    assert found["loss/corpus/b/code"] == losses[2] / tokens[2]
    assert found["loss/corpus/a/text"] == found["loss/text"]


def test_validation_weighs_corpora_as_the_stage_does() -> None:
    def sums(loss: float, tokens: float, utf8: float) -> torch.Tensor:
        return torch.tensor([loss * tokens, tokens, utf8], dtype=torch.float64)

    found = {
        "a/text": sums(2.0, 10, 30),
        "a/code": sums(3.0, 20, 50),
        "b/code": sums(6.0, 40, 200),
        "c/prose": sums(5.0, 4, 9),
        "d/prose": sums(7.0, 12, 9),
    }
    fields = _fields(found, {"a/text": 3.0, "a/code": 1.0, "b/code": 2.0}, loops=1)
    assert fields["val/loss"] == pytest.approx((3 * 2 + 3 + 2 * 6) / 6)
    assert fields["val/loss/code"] == pytest.approx((3 + 2 * 6) / 3)
    assert fields["val/loss/text"] == fields["val/loss/corpus/a/text"] == 2.0
    assert fields["val/loss/corpus/b/code"] == 6.0
    bytes_per_token = (50 / 20 + 2 * 200 / 40) / 3
    wanted = fields["val/loss/code"] / bytes_per_token / math.log(2)
    assert fields["val/bpb/code"] == pytest.approx(wanted)
    # of no data stage's mixture now: weighed by what is held out
    assert fields["val/loss/prose"] == pytest.approx((5 * 4 + 7 * 12) / 16)
