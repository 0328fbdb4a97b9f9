"""The estimate of activations against what autograd really saves."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch

from loopcoder.config.compose import compose
from loopcoder.config.objective import ObjectiveConfig
from loopcoder.config.schema import Config
from loopcoder.plan.activations import (
    activation_bytes,
    evaluation_bytes,
    evaluation_floor_bytes,
    layer_bytes,
    logits_bytes,
    mask_bytes,
)
from loopcoder.plan.memory import largest_rank
from tests.configs import small_config

SHAPE = {
    "num_layers": 4,
    "hidden_size": 128,
    "ffn_hidden_size": 352,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 32,
}
LENGTH = 128


def config_of(model: dict[str, Any], precision: str, recompute: str) -> Config:
    config = small_config(SHAPE | model, precision, recompute=recompute)
    return replace(config, data=replace(config.data, seq_length=LENGTH))


def saved_bytes(config: Config, ranks: Any, vocab_size: int = 128) -> int:
    """Bytes of everything but parameters that the forward pass of packed rows keeps."""
    from loopcoder.model.documents import Documents
    from loopcoder.model.step_objective import step_objective
    from loopcoder.train.state import build_network

    network, _ = build_network(config, ranks, vocab_size)
    loops = config.model.num_loops
    objective = step_objective(config.objective, loops, loops)
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    shape = (config.train.micro_batch_size, LENGTH)
    tokens = torch.randint(128, shape)
    docs = Documents.packed(torch.zeros(shape, dtype=torch.int64))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(tokens, docs, tokens, objective=objective)
    assert output.requires_grad
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(
    "model",
    [{"num_loops": 1}, {"num_loops": 2}, {"num_loops": 3, "gate": "query"}, {"kv_sharing": "own"}],
)
def test_it_is_what_autograd_saves(
    ranks: Any, precision: str, recompute: str, model: dict[str, Any]
) -> None:
    config = config_of(model, precision, recompute)
    tokens = config.train.micro_batch_size * LENGTH
    estimate = activation_bytes(config, 0, 1, LENGTH)
    if recompute == "full":  # one run is made again, and only later
        gated = config.model.has_gates
        estimate -= tokens * max(layer_bytes(config, gated=g) for g in (False, gated))
        estimate -= mask_bytes(config, LENGTH)  # which Documents holds, not autograd
    found = saved_bytes(config, ranks) - 4 * tokens * 128  # softmax of the logits
    assert estimate == pytest.approx(found, rel=0.1 if recompute == "full" else 0.05)


@pytest.mark.parametrize("objective", [{"loop_weights": [1, 0, 1]}, {"exit": True}], ids=str)
def test_logits_of_every_loop_that_counts_stay(ranks: Any, objective: dict[str, Any]) -> None:
    plain = config_of({"num_loops": 3}, "fp32", "full")
    config = replace(plain, objective=ObjectiveConfig(**objective))
    found = saved_bytes(config, ranks, 8192) - saved_bytes(plain, ranks, 8192)
    planned = logits_bytes(config, 8192, LENGTH) - logits_bytes(plain, 8192, LENGTH)
    assert planned == pytest.approx(found, rel=0.05)


def evaluated_bytes(config: Config, ranks: Any, vocab_size: int, length: int) -> int:
    """Most bytes that a forward pass without gradients holds at once, by what torch allocates."""
    from loopcoder.model.documents import Documents
    from loopcoder.train.state import build_network

    network, _ = build_network(config, ranks, vocab_size)
    shape = (config.train.micro_batch_size, length)
    tokens = torch.randint(vocab_size, shape)
    start = torch.zeros(shape, dtype=torch.int64)
    packed = config.data.isolate_documents
    docs = Documents.packed(start) if packed else Documents.whole_rows(*shape, start.device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        torch.no_grad(),
        torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as seen,
    ):
        network(tokens, docs, tokens, every_loop=True)
    changes = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in changes))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("model", "vocab_size", "length", "isolated"),
    [
        ({"num_loops": 2}, 128, 1024, True),
        ({"num_loops": 1}, 128, 1024, True),
        ({"num_loops": 3}, 128, 1024, False),
        ({"kv_sharing": "own"}, 128, 1024, True),
        ({"num_loops": 2}, 16384, 256, True),
    ],
)
def test_an_evaluation_takes_what_torch_allocates(
    ranks: Any,
    precision: str,
    model: dict[str, Any],
    vocab_size: int,
    length: int,
    isolated: bool,
) -> None:
    config = config_of(model, precision, "none")
    config = replace(config, data=replace(config.data, isolate_documents=isolated))
    found = evaluated_bytes(config, ranks, vocab_size, length)
    print(evaluation_bytes(config, vocab_size, 0, length) / found)
    assert evaluation_bytes(config, vocab_size, 0, length) == pytest.approx(found, rel=0.15)
    assert evaluation_floor_bytes(config, vocab_size, 0, length) <= found


def test_it_shrinks_with_what_is_split_or_made_again() -> None:
    base = ["model=plt_7b", "model.layer_spec=te", "precision=bf16"]

    def activations(*overrides: str, world: int = 8) -> int:
        return largest_rank(compose([*base, *overrides]), 76_800, world).activations_bytes

    plain = activations()
    assert activations("parallel=tp2_sp") == pytest.approx(plain / 2, rel=0.01)
    assert plain / 2 < activations("parallel.tp=2") < plain
    assert activations("train.micro_batch_size=2") == 2 * plain
    selective, full = (activations(f"parallel.recompute={r}") for r in ("selective", "full"))
    assert full < selective < plain
    assert activations("model.num_loops=4") > 1.9 * plain


@pytest.mark.parametrize("preset", ["plt_20m", "plt_100m", "plt_300m", "plt_1b", "plt_7b"])
def test_the_recipe_that_chooses_the_microbatch_says_about_the_same(preset: str) -> None:
    """It has a rougher formula, since it may not import the model, and its result is part of runs
    that exist. 30 GB is what it allows."""
    config = compose([f"model={preset}", "precision=bf16", "model.layer_spec=te"])
    memory = largest_rank(config, config.model.vocab_size or 32_768, 1)
    if preset != "plt_7b":  # its recipe is of its own
        assert memory.activations_bytes + memory.logits_bytes < 1.25 * 30e9
