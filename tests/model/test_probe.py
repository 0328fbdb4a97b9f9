"""The probe measures every loop and changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.configs import small_config
from tests.dist.layouts import DOMAINS, VOCAB, global_batch, microbatches
from tests.weights import randomise


def step(config: Any, ranks: Any, ids: torch.Tensor, seed: int, probe: Any) -> dict[str, Any]:
    from loopcoder.train.measures import Measures
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward

    state = build_state(config, ranks, VOCAB)
    randomise(state.network, torch.Generator().manual_seed(seed))
    inputs: list[torch.Tensor] = []

    def keep(_: Any, args: tuple[Any, ...]) -> None:
        if args[0].requires_grad:
            args[0].retain_grad()
            inputs.append(args[0])

    state.network.decoder.register_forward_pre_hook(keep)
    batches = microbatches(config, ids, True, 0, 1)
    sums = forward_backward(state, batches, DOMAINS, Measures(probe))
    grads = {n: p.main_grad.clone() for n, p in state.network.named_parameters()}
    return {"state": state, "batches": batches, "sums": sums, "grads": grads, "inputs": inputs}


@pytest.mark.parametrize("loops", [1, 2, 3])
def test_it_measures_losses_and_gradients_of_loops(ranks: Any, seed: int, loops: int) -> None:
    from loopcoder.model.probe import LoopProbe

    config = small_config(dict(num_loops=loops))
    ids = global_batch(seed, 0, 8, 32)
    probe = LoopProbe(loops, torch.device("cpu"), losses=True, gradients=True)
    plain, probed = (step(config, ranks, ids, seed, p) for p in (None, probe))
    for n, g in probed["grads"].items():
        assert torch.equal(g, plain["grads"][n]), n
    assert torch.equal(plain["sums"], probed["sums"])

    tokens = float(probed["sums"][1].sum())
    fields = probe.fields(tokens)
    network, by_loop = probed["state"].network, torch.zeros(loops)
    with torch.no_grad():
        for b in probed["batches"]:
            losses = network(b.tokens, b.documents, b.labels, every_loop=True)
            by_loop += (losses * b.loss_mask).sum((1, 2)) / tokens
    for r in range(loops):
        assert fields[f"loss/loop{r}"] == pytest.approx(by_loop[r].item(), rel=1e-5)
        squares = sum(x.grad.double().square().sum() for x in probed["inputs"][r::loops])
        expected = math.sqrt(squares) / tokens
        assert fields[f"grad_norm/loop{r}"] == pytest.approx(expected, rel=1e-5)
    # Everything that the gradient at the first loop's input leaves out is E mixed in later.
    if loops == 1:
        whole = math.sqrt(sum(x.grad.double().square().sum() for x in plain["inputs"])) / tokens
        assert fields["grad_norm/loop0"] == pytest.approx(whole, rel=1e-5)


def test_it_measures_only_what_is_asked_for(ranks: Any, seed: int) -> None:
    from loopcoder.model.probe import LoopProbe

    config = replace(small_config(), train=replace(small_config().train, global_batch_size=2))
    ids = global_batch(seed, 0, 2, 32)
    for losses, gradients in ((True, False), (False, True)):
        probe = LoopProbe(2, torch.device("cpu"), losses=losses, gradients=gradients)
        step(config, ranks, ids, seed, probe)

        kinds = {name.split("/")[0] for name in probe.fields(1.0)}
        assert kinds == ({"loss"} if losses else {"grad_norm"})
