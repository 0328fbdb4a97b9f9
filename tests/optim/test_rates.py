"""Which parameters learn at which rate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loopcoder.config.compose import compose
from loopcoder.optim.rates import rate_overrides, rate_scales


def test_without_fields_everything_learns_at_one_rate():
    config = compose(["model=plt_tiny"])
    assert set(rate_scales(config.model, config.optim).values()) == {1.0}
    assert rate_overrides(config.model, config.optim) == {}


def test_matrices_learn_slower_in_a_wider_model_and_the_embedding_does_not():
    config = compose(["model=plt_1b"])
    model = replace(config.model, residual_scale=0.5)
    optim = replace(config.optim, embedding_lr_scale=40, head_lr_scale=3)
    assert rate_scales(model, optim) == {
        "embedding": 40,
        "matrix": 512 / 2048,
        "head": 3 * 512 / 2048,
        "output projection": 0.5 * 512 / 2048,
    }


def test_decay_is_the_same_for_all_matrices():
    config = compose(["model=plt_1b"])
    overrides = rate_overrides(config.model, config.optim).values()
    assert [o["lr_mult"] * o["wd_mult"] for o in overrides] == pytest.approx([1.0, 1.0])
