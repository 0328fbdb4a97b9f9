"""Objectives of several loops in one process, against an independent float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loopcoder.config.objective import ObjectiveConfig
from tests.configs import small_config
from tests.model.test_reference import VOCAB, random_starts
from tests.reference import Rounding, errors, evaluate
from tests.weights import named, randomise

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    # model, objective, loops that run
    "weights": (dict(num_loops=3), dict(loop_weights=[0.2, 1, 3]), 3),
    "some weights": (dict(num_loops=3), dict(loop_weights=[1, 0, 1]), 3),
    "not the last": (dict(num_loops=2), dict(loop_weights=[1, 0]), 2),
    "weights, two of three": (dict(num_loops=3), dict(loop_weights=[0.2, 1, 3]), 2),
    "exit": (dict(num_loops=3), dict(exit=True, exit_entropy=0.2), 3),
    "exit without entropy": (dict(num_loops=2), dict(exit=True, exit_entropy=0), 2),
    "exit, norm once": (dict(num_loops=4, norm_per_loop=False), dict(exit=True), 4),
    "exit, two of four": (dict(num_loops=4), dict(exit=True), 2),
    "exit, one loop": (dict(num_loops=3), dict(exit=True), 1),
    "one loop": (dict(num_loops=3), dict(), 1),
    "two loops": (dict(num_loops=3, gate="query"), dict(), 2),
    "own kv": (dict(num_loops=3, kv_sharing="own"), dict(exit=True), 2),
}


def build(ranks: Any, model: dict[str, Any], objective: ObjectiveConfig, recompute: str) -> Any:
    from loopcoder.model.plt import PLTModel
    from loopcoder.model.specs import transformer_config

    config = small_config(model, recompute=recompute)
    network = PLTModel(
        transformer_config(config),
        config.model,
        VOCAB,
        ranks.groups,
        has_exit_gate=objective.has_gate(config.model.num_loops),
    )
    return network, config.model


RECOMPUTED = ("some weights", "exit, two of four", "exit, one loop")


@pytest.mark.parametrize(
    ("case", "recompute"), [(c, "none") for c in CASES] + [(c, "full") for c in RECOMPUTED]
)
def test_value_and_gradients(ranks: Any, seed: int, case: str, recompute: str) -> None:
    from loopcoder.model.documents import Documents
    from loopcoder.model.objective import parts
    from loopcoder.model.step_objective import step_objective

    fields, settings, loops = CASES[case]
    objective = ObjectiveConfig(**settings)
    generator = torch.Generator().manual_seed(seed)
    network, model = build(ranks, fields, objective, recompute)
    randomise(network, generator)
    tokens, labels = torch.randint(0, VOCAB, (2, 2, 24), generator=generator)
    mask = torch.rand(2, 24, generator=generator) < 0.8
    docs = Documents.packed(random_starts(generator, 2, 24))
    rounding = Rounding(
        named(network, model),
        lambda w: evaluate(w, model, tokens, labels, mask, docs.start, objective, loops),
        seed,
    )
    asked = step_objective(objective, model.num_loops, loops)
    output = network(tokens, docs, labels, objective=asked)
    ours, minimised = {}, output
    if asked.sums_loops:
        minimised, losses, shares = parts(output)
        torch.testing.assert_close(shares.sum(0), torch.ones_like(shares[0]))
        found = [(loss * mask).sum() / mask.sum() for loss in losses]
        ours = {f"loss {r}": x for r, x in zip(asked.read_loops, found, strict=True)}
        ours["objective"] = (minimised * mask).sum() / mask.sum()
    ((minimised * mask).sum() / mask.sum()).backward()
    ours |= named(network, model, grad=True)
    assert not rounding.beyond(errors(ours, rounding.exact))


def test_the_last_loop_alone_as_weights_is_the_plain_loss_bit_for_bit(
    ranks: Any, seed: int
) -> None:
    from loopcoder.model.documents import Documents
    from loopcoder.model.objective import parts
    from loopcoder.model.step_objective import step_objective

    generator = torch.Generator().manual_seed(seed)
    objective = ObjectiveConfig(loop_weights=[0, 0, 7.0])
    network, _ = build(ranks, dict(num_loops=3), objective, "none")
    randomise(network, generator)
    tokens, labels = torch.randint(0, VOCAB, (2, 2, 24), generator=generator)
    docs = Documents.whole_rows(2, 24, torch.device("cpu"))
    found = []
    for asked in (None, step_objective(objective, 3, 3)):
        network.zero_grad()
        output = network(tokens, docs, labels, objective=asked)
        loss = output if asked is None else parts(output)[0]
        loss.mean().backward()
        found.append([loss, *(p.grad for p in network.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("objective", "model"),
    [(dict(loop_weights=[1, 0, 2.0]), {}), (dict(exit=True), dict(norm_per_loop=False))],
    ids=str,
)
def test_bf16_gradients_of_what_reads_loops_are_summed_in_fp32(
    ranks: Any, seed: int, model: dict[str, Any], objective: dict[str, Any]
) -> None:
    """A parameter itself ends in a gradient, which overlapped reduction waits for, and the others
    are added to its main gradient in fp32."""
    from loopcoder.model.reuse import ALIASES
    from loopcoder.train.step import forward_backward
    from tests.dist.layouts import (
        DOMAINS,
        Case,
        build,
        global_batch,
        in_layouts,
        microbatches,
        random_weights,
    )

    case = Case("", dict(num_loops=3) | model, precision="bf16", objective=objective)
    ((_, config, layout),) = in_layouts([case])
    state = build(config, layout, random_weights(case, layout, seed))
    readers = state.network.used_in_every_loop(reads_loops=True)
    added: list[Any] = []
    for module in readers:
        for alias in (x for loop in getattr(module, ALIASES) for x in loop.values()):
            alias.register_post_accumulate_grad_hook(added.append)
    ids = global_batch(seed, 0, config.train.global_batch_size, config.data.seq_length)
    whole = microbatches(config, ids, True, 0, 1)
    forward_backward(state, whole, DOMAINS)
    heads = getattr(state.network.output_layer, ALIASES)
    read = 3 if "exit" in objective else 2
    assert sum(any(x is alias["weight"] for x in added) for alias in heads) == read - 1
    assert all(p.main_grad.abs().max() > 0 for p in state.network.parameters())


def test_with_one_loop_every_parameter_has_a_gradient_of_zeros_or_more(ranks: Any) -> None:
    from loopcoder.model.documents import Documents
    from loopcoder.model.step_objective import StepObjective

    network, _ = build(ranks, dict(num_loops=3), ObjectiveConfig(exit=True), "none")
    randomise(network, torch.Generator().manual_seed(1))
    tokens = torch.randint(0, VOCAB, (2, 24))
    docs = Documents.whole_rows(2, 24, torch.device("cpu"))
    network(tokens, docs, tokens, objective=StepObjective(1)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) != ("gate" in name.replace("linear", "")), name
