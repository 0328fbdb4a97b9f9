"""Parameters and FLOPs: the published 7B numbers, the real model's own weights, an operation
counter."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from loopcoder.config.compose import compose
from loopcoder.config.objective import ObjectiveConfig
from loopcoder.model.flops import (
    block_parameters,
    gate_parameters,
    parameters,
    train_flops_per_token,
)
from loopcoder.model.step_objective import step_objective
from tests.configs import small_config, small_model


@pytest.fixture(scope="module")
def plt_7b():
    return compose(["model=plt_7b"]).model


def test_parameters_of_the_released_model(plt_7b):
    assert block_parameters(plt_7b) == 487_587_840
    assert parameters(plt_7b, 76_800) == 7_615_749_680
    assert parameters(plt_7b, 76_800) - 2 * 76_800 * 5120 == 6_829_317_680
    assert plt_7b.num_layers * gate_parameters(plt_7b) == 2_939_440
    plain = replace(plt_7b, num_loops=1)
    assert parameters(plain, 76_800) == 7_615_749_680 - 2_939_440


@pytest.mark.parametrize(("loops", "gflop"), [(1, 46.84), (2, 91.38), (3, 135.9), (4, 180.4)])
def test_flops_of_the_released_model(plt_7b, loops, gflop):
    """GFLOP a token at 8192, causal, as published with four digits."""
    causal, full = train_flops_per_token(replace(plt_7b, num_loops=loops), 76_800, 8192)
    assert float(f"{causal / 1e9:.4g}") == gflop
    # The conventions differ by half of each loop's attention over the whole sequence: 6*S*d a
    # layer.
    assert full - causal == loops * 14 * 6 * 8192 * 5120


def test_switches(plt_7b):
    def causal(**changes):
        return train_flops_per_token(replace(plt_7b, **changes), 76_800, 8192)[0]

    # The window of each later loop: itself and 64 keys to the left.
    window = 14 * 12 * 65 * 5120
    assert causal(num_loops=3) - causal(num_loops=3, kv_sharing="own") == 2 * window
    assert causal(num_loops=1) == causal(num_loops=1, kv_sharing="own")
    assert causal(num_loops=2, window=0) == causal(num_loops=2) - 14 * 12 * 64 * 5120
    for changes in ({"gate": "query"}, {"shift": False}, {"norm_per_loop": False}):
        assert causal(**changes) == causal()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_loops": 1},
        {"num_loops": 3},
        {"num_loops": 2, "gate": "query"},
        {"num_loops": 2, "kv_sharing": "own"},
        {"num_loops": 4, "num_layers": 3, "num_kv_heads": 1, "hidden_size": 24, "head_dim": 10},
    ],
)
def test_parameters_are_those_of_the_real_model(ranks, seed, changes):
    from loopcoder.model.plt import PLTModel
    from loopcoder.model.specs import transformer_config

    changes = changes | {"ffn_hidden_size": 8 * random.Random(seed).randint(1, 9)}
    config = small_config(changes)
    network = PLTModel(transformer_config(config), config.model, 256, ranks.groups)
    assert parameters(config.model, 256) == sum(p.numel() for p in network.parameters())
    gates = sum(p.numel() for n, p in network.named_parameters() if "plt_gate" in n)
    assert config.model.num_layers * gate_parameters(config.model) == gates


@pytest.mark.parametrize(
    ("loops", "objective", "run"),
    [
        (1, {}, 1),
        (2, {}, 2),
        (3, {}, 3),
        (3, {"loop_weights": [1, 0, 1]}, 3),
        (3, {"exit": True}, 3),
        (3, {"exit": True, "loop_count": "uniform"}, 2),
        (3, {"loop_count": "uniform"}, 1),
    ],
)
def test_matrix_products_that_are_really_done(ranks, seed, loops, objective, run):
    """Count the forward and backward pass of a real model; attention on the CPU is not counted, so
    it has none."""
    from torch.utils.flop_counter import FlopCounterMode

    from loopcoder.model.documents import Documents
    from loopcoder.model.plt import PLTModel
    from loopcoder.model.specs import transformer_config

    config = small_config({"num_loops": loops, "kv_sharing": "own"})
    objective = ObjectiveConfig(**objective)
    network = PLTModel(
        transformer_config(config),
        config.model,
        128,
        ranks.groups,
        has_exit_gate=objective.has_gate(loops),
    )
    assert parameters(config.model, 128, objective) == sum(p.numel() for p in network.parameters())
    tokens = torch.randint(128, (2, 16), generator=torch.Generator().manual_seed(seed))
    docs = Documents.whole_rows(2, 16, tokens.device)
    with FlopCounterMode(display=False) as counter:
        network(
            tokens, docs, tokens, objective=step_objective(objective, loops, run)
        ).sum().backward()
    counts = {
        op: n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op)
    }
    causal, full = train_flops_per_token(config.model, 128, 16, objective, {run: 1.0})
    assert sum(counts.values()) == 32 * (2 * causal - full)


def test_steps_of_drawn_loops_cost_their_mean(plt_7b):
    model = replace(plt_7b, num_loops=3)
    objective = ObjectiveConfig(loop_count="uniform", loop_weights=[1, 1, 1])
    of_loops = [train_flops_per_token(model, 512, 64, objective, {n: 1.0}) for n in (1, 2, 3)]
    mean = [sum(kind) / 3 for kind in zip(*of_loops, strict=True)]
    assert train_flops_per_token(model, 512, 64, objective) == pytest.approx(mean)
    # two steps of three loops and one of one
    few = train_flops_per_token(model, 512, 64, objective, {3: 2 / 3, 1: 1 / 3})
    expected = [(2 * c + a) / 3 for a, _, c in zip(*of_loops, strict=True)]
    assert few == pytest.approx(expected)


def test_grows_with_what_costs(seed):
    rng = random.Random(seed)
    model = small_model(num_loops=rng.randint(2, 4), window=rng.randint(0, 20))
    base = train_flops_per_token(model, 512, 64)
    for more in (
        train_flops_per_token(replace(model, num_loops=model.num_loops + 1), 512, 64),
        train_flops_per_token(replace(model, num_layers=model.num_layers + 1), 512, 64),
        train_flops_per_token(replace(model, window=model.window + 1), 512, 64),
        train_flops_per_token(model, 640, 64),
        train_flops_per_token(model, 512, 65),
    ):
        assert all(a > b for a, b in zip(more, base, strict=True))
