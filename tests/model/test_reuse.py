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
    reuse.share_over_loops(ddp, aliased.decoder.layers)

    tokens, labels = torch.randint(0, VOCAB, (2, 2, 24), generator=generator)
    docs = Documents.packed(random_starts(generator, 2, 24))
    losses = [network(tokens, docs, labels).mean() for network in (plain, aliased)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    found = {n: p.grad for n, p in aliased.named_parameters()}
    assert len(linears) == 2 * config.model.num_layers
    for index, layer in enumerate(aliased.decoder.layers):
        for name, alias in getattr(layer, reuse.ALIASES).items():
            weight = layer.get_parameter(name)
            assert alias.data_ptr() == weight.data_ptr()
            assert alias.main_grad is weight.main_grad
            assert (alias.grad is None) == (loops == 1)
            if alias.grad is not None:
                found[f"decoder.layers.{index}.{name}"] += alias.grad
    for name, p in plain.named_parameters():
        assert relative(found[name], p.grad.double()) <= 2e-6, name


def test_fp8_copies_are_dropped_at_the_first_microbatch() -> None:
    from loopcoder.model import reuse

    linear: Any = torch.nn.Linear(2, 2)
    linear._fp8_workspaces, linear.is_first_microbatch = {"weight": object()}, True
    ddp = SimpleNamespace()
    reuse.share_over_loops(ddp, torch.nn.ModuleList([torch.nn.Sequential(linear)]))
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
    reuse.share_over_loops(ddp, layers)
    with torch.no_grad():
        linear.weight.add_(1.0)  # an update leaves it where it is
    ddp.set_is_first_microbatch()
    if moved == "weight":
        linear.weight.data = linear.weight.data.clone()
    else:
        linear.weight.main_grad = linear.weight.main_grad.clone()
    with pytest.raises(RuntimeError, match=r"fc\.weight of layer 0 .* has moved"):
        ddp.set_is_first_microbatch()
    reuse.share_over_loops(ddp, layers)
    ddp.set_is_first_microbatch()
