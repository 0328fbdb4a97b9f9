"""The history of FP8's delayed scaling in checkpoints.

Transformer Engine keeps it as extra state of its modules, pickled, and refuses to load pickles. So
checkpoints have the tensors themselves. Other precisions have no such state, and the entries exist
in one layer spec only: they are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_SUFFIX = "._extra_state"


def is_history(name: str) -> bool:
    """Say whether an entry of a state dict is extra state and no weight."""
    return name.endswith(_SUFFIX)


def with_history(network: nn.Module, model: dict[str, Any]) -> dict[str, Any]:
    """Return the sharded state of a network with its history of scaling, where it has one, as one
    dict of tensors per module.

    Args:
        model: sharded state dict; names are "model." and the name in the network.
    """
    config: Any = network.config
    scales = bool(config.fp8) and config.fp8_recipe == "delayed"
    out = {}
    for name, value in model.items():
        if not is_history(name):
            out[name] = value
        # attention and norms compute in bf16
        elif scales and ".linear_" in name:
            value.data = _tensors(_module(network, name))
            out[name] = value
    return out


def restore(network: nn.Module, histories: dict[str, dict[str, Tensor]]) -> None:
    """Give modules the histories that were loaded, under the names of `with_history`."""
    from megatron.core.fp8_utils import get_fp8_recipe

    for name, tensors in histories.items():
        if not tensors:  # it was saved before the first step
            continue
        module: Any = _module(network, name)
        module.fp8_meta["recipe"] = get_fp8_recipe(network.config)
        # input, weight and output of each product
        module.fp8_meta["num_gemms"] = tensors["scale_fwd"].numel() // 3
        module.init_fp8_meta_tensors(module.fp8_meta["recipe"])
        for key, tensor in _places(module).items():
            tensor.copy_(tensors[key])


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Keep a network's history of scaling as it is, whatever is computed in the block."""
    scaled = [m for m in network.modules() if isinstance(getattr(m, "fp8_meta", None), dict)]
    kept = [(place, place.clone()) for module in scaled for place in _places(module).values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for place, before in kept:
                place.copy_(before)


def _module(network: nn.Module, name: str) -> nn.Module:
    return network.get_submodule(name.removeprefix("model.").removesuffix(_SUFFIX))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.cpu() for key, tensor in _places(module).items()}


def _places(module: Any) -> dict[str, Tensor]:
    scalings = {key: module.fp8_meta.get(f"scaling_{key}") for key in ("fwd", "bwd")}
    return {
        f"{kind}_{key}": getattr(scaling, kind)
        for key, scaling in scalings.items()
        if scaling is not None
        for kind in ("scale", "amax_history")
    }
