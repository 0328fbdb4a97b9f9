"""Later loops run on aliases of the weights: same memory, gradients of their own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.configs import small_config
from tests.model.test_reference import VOCAB, random_starts
from tests.reference import relative
from tests.weights import randomise


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("loops", [1, 2, 3])
def test_gradients_of_weight_and_alias_are_the_whole(
    ranks: Any, seed: int, loops: int, recompute: str
) -> None:
    from loopcoder.model import reuse
    from loopcoder.model.documents import Documents
    from loopcoder.model.plt import PLTModel
    from loopcoder.model.specs import transformer_config

    generator = torch.Generator().manual_seed(seed)
    config = small_config(dict(num_loops=loops), recompute=recompute)
    plain, aliased = (
        PLTModel(transformer_config(config), config.model, VOCAB, ranks.groups) for _ in range(2)
    )
    randomise(plain, generator)
    aliased.load_state_dict(plain.state_dict())
    # What Transformer Engine's linear layers and DDP bring: the mark, and a main gradient.
    linears = [m for n, m in aliased.decoder.layers.named_modules() if n.endswith(("_qkv", "_fc1"))]
    for linear in linears:
        linear.fuse_wgrad_accumulation = True
        linear.weight.main_grad = torch.zeros_like(linear.weight)
    ddp = SimpleNamespace()
    reuse.share_over_loops(ddp, aliased.used_in_every_loop(), loops)

    tokens, labels = torch.randint(0, VOCAB, (2, 2, 24), generator=generator)
    docs = Documents.packed(random_starts(generator, 2, 24))
    losses = [network(tokens, docs, labels).mean() for network in (plain, aliased)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    found = {n: p.grad for n, p in aliased.named_parameters()}
    assert len(linears) == 2 * config.model.num_layers
    for index, layer in enumerate(aliased.decoder.layers):
        by_loop = getattr(layer, reuse.ALIASES)
        assert len(by_loop) == loops - 1
        for name, alias in (x for aliases in by_loop for x in aliases.items()):
            weight = layer.get_parameter(name)
            assert alias.data_ptr() == weight.data_ptr()
            assert alias.main_grad is weight.main_grad
            found[f"decoder.layers.{index}.{name}"] += alias.grad
    for name, p in plain.named_parameters():
        assert relative(found[name], p.grad.double()) <= 2e-6, name


@pytest.mark.parametrize("model", [{}, {"gate": "query"}, {"kv_sharing": "own"}], ids=str)
def test_bf16_gradients_are_summed_over_loops_in_fp32(
    ranks: Any, seed: int, model: dict[str, Any]
) -> None:
    """Recomputed layers have a graph for each loop, like chunks of a pipeline, and so are added up
    in fp32 by megatron-core; autograd's sum over one graph was off by up to 0.7%."""
    from loopcoder.train.step import forward_backward
    from tests.dist.layouts import (
        DOMAINS,
        Case,
        build,
        global_batch,
        microbatches,
        random_weights,
    )

    weights = random_weights(Case("", dict(num_loops=4) | model), ranks, seed)
    found = []
    for recompute in ("none", "selective", "full"):
        config = small_config(dict(num_loops=4) | model, "bf16", recompute=recompute)
        state = build(config, ranks, weights)
        ids = global_batch(seed, 0, config.train.global_batch_size, config.data.seq_length)
        forward_backward(state, microbatches(config, ids, True, 0, 1), DOMAINS)
        found.append({n: p.main_grad for n, p in state.network.named_parameters()})
        assert all(grad.dtype == torch.float32 for grad in found[-1].values())
    for name, grad in found[0].items():
        assert grad.abs().max() > 0, name
        # the weight of a query gate is no module's, and its three terms are added in another order
        order = 2 * torch.finfo(torch.float32).eps if "plt_gate.weight" in name and model else 0.0
        most = max((grad - other[name]).abs().max() for other in found[1:])
        assert most <= order * grad.abs().max(), name


@pytest.mark.parametrize("loops", [2, 4])
@pytest.mark.parametrize("model", [{}, {"norm_per_loop": False}], ids=str)
def test_every_parameter_itself_ends_in_a_gradient(
    ranks: Any, loops: int, model: dict[str, Any]
) -> None:
    """megatron-core's overlapped reduction waits for the hook of each one: a gate begins in loop 1,
    and a norm that is not in every loop has no gradient but in the last."""
    from loopcoder.train.state import build_state
    from tests.dist.layouts import batch_of, global_batch

    config = small_config(dict(num_loops=loops) | model, "bf16")
    state = build_state(config, ranks, VOCAB)
    batch = batch_of(global_batch(1, 0, 2, 24), torch.arange(2), True)
    fired: set[str] = set()
    for name, p in state.network.named_parameters():
        accumulator: Any = p.view_as(p).grad_fn
        accumulator.next_functions[0][0].register_hook(lambda *_, name=name: fired.add(name))
    state.network(batch.tokens, batch.documents, batch.labels).sum().backward()
    assert fired == {n for n, _ in state.network.named_parameters()}


def test_fp8_copies_are_dropped_at_the_first_microbatch() -> None:
    from loopcoder.model import reuse

    linear: Any = torch.nn.Linear(2, 2)
    linear._fp8_workspaces, linear.is_first_microbatch = {"weight": object()}, True
    ddp = SimpleNamespace()
    reuse.share_over_loops(ddp, torch.nn.ModuleList([torch.nn.Sequential(linear)]), 2)
    assert linear.is_first_microbatch is False
    assert linear._fp8_workspaces
    ddp.set_is_first_microbatch()
    assert not linear._fp8_workspaces
    assert linear.is_first_microbatch is False


@pytest.mark.parametrize("moved", ["weight", "main_grad"])
def test_a_weight_that_moved_is_noticed(moved: str) -> None:
    """Whoever maps it to other memory (a buffer, another device, a loader) leaves a dead alias."""
    from loopcoder.model import reuse

    layer = torch.nn.ModuleDict({"fc": torch.nn.Linear(4, 4)})
    linear: Any = layer["fc"]
    linear.fuse_wgrad_accumulation = True
    linear.weight.main_grad = torch.zeros(4, 4)
    layers = torch.nn.ModuleList([layer])
    ddp = SimpleNamespace()
    reuse.share_over_loops(ddp, layers, 2)
    with torch.no_grad():
        linear.weight.add_(1.0)  # an update leaves it where it is
    ddp.set_is_first_microbatch()
    if moved == "weight":
        linear.weight.data = linear.weight.data.clone()
    else:
        linear.weight.main_grad = linear.weight.main_grad.clone()
    with pytest.raises(RuntimeError, match=r"fc\.weight of module 0 .* has moved"):
        ddp.set_is_first_microbatch()
    reuse.share_over_loops(ddp, layers, 2)
    ddp.set_is_first_microbatch()
