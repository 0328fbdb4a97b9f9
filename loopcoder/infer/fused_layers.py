"""The layers of a decoder by the CUDA kernels for it: what `layers.run_layers` does, in seven or
eight launches a layer, which read the weights at the speed of memory.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from loopcoder.backends import NOT_BUILT, Backends
from loopcoder.config.schema import ModelConfig
from loopcoder.errors import InputError
from loopcoder.infer.cache import KV, Cache, later_loops
from loopcoder.infer.layers import Rope, gate_of_queries
from loopcoder.infer.split import WHOLE, Split
from loopcoder.infer.weights import LayerWeights, ModelWeights
from loopcoder.ops import decode

Kernels = Literal["auto", "stock", "cuda"]


def choose(
    kernels: Kernels,
    model: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    here: Backends,
    split: Split = WHOLE,
) -> bool:
    """Say whether a decoder takes the CUDA kernels: auto where they were tested, are built and can
    run the model.

    Raises:
        InputError: they were asked for and cannot be used; or what is built is out of date.
    """
    if kernels == "stock":
        return False
    fault, fix = _fault(model, device, dtype, split, here), "kernels=stock"
    if kernels == "auto" and (
        fault is not None or not here.kernels_were_run or here.kernels_fault == NOT_BUILT
    ):
        return False
    if fault is None and here.kernels_fault is not None:
        fault, fix = f"the CUDA extension: {here.kernels_fault}", f"make kernels, or {fix}"
    if fault is not None:
        raise InputError.of(f"kernels={kernels}", fault, fix)
    return True


def run_layers(
    weights: ModelWeights,
    model: ModelConfig,
    split: Split,
    cache: Cache,
    hidden: Tensor,
    rope: Rope,
    places: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run a token of each of some places through all layers, in all loops at once.

    Args:
        hidden: Input of each token in each loop. [B, R, D]
        rope: Of the tokens.
        places, positions: [B]

    Returns:
        the residual stream after the last layer, before and after the final norm. [B, R, D]
    """
    rows = hidden.flatten(0, 1).contiguous()
    angles = rope.cos.flatten(1), rope.sin.flatten(1)
    later = later_loops(model, range(model.num_loops))
    for index, layer in enumerate(weights.layers):
        kept = cache.kept(index, 0)
        rings = cache.rings(index, later) if later else None
        gates = _gates(layer, rows, model) if later else None
        qkv = decode.linear(rows, layer.qkv, norm=layer.input_norm, eps=model.norm_eps)
        q = decode.rotate(
            qkv.unflatten(0, hidden.shape[:2]),
            *angles,
            kept,
            rings,
            places,
            positions,
        )
        attended = _attend(layer, q, kept, rings, places, positions, gates)
        rows = _add(split, rows, attended.flatten(2).flatten(0, 1), layer.output)
        inner = decode.linear(
            rows, layer.gate_up, norm=layer.mlp_norm, eps=model.norm_eps, swiglu=True
        )
        rows = _add(split, rows, inner, layer.down)
    normed = F.rms_norm(rows, weights.final_norm.shape, weights.final_norm, model.norm_eps)
    return rows.view_as(hidden), normed.view_as(hidden)


def head(normed: Tensor, weight: Tensor) -> Tensor:
    """Return logits in fp32. [N, D] -> [N, rows of the weight]"""
    return decode.linear(normed, weight, to_float=True)


def _fault(
    model: ModelConfig, device: torch.device, dtype: torch.dtype, split: Split, here: Backends
) -> str | None:
    """Say why the kernels cannot run a model."""
    if device.type != "cuda":
        return f"the kernels for decoding run on a GPU, and the model is on the {device.type}"
    if here.compute_capability not in decode.HAVE_SHARED:
        capability = ".".join(map(str, here.compute_capability or ()))
        return (
            f"a block of them takes {decode.SHARED_KIB} KiB of shared memory, more than a GPU of "
            f"compute capability {capability} gives"
        )
    if dtype != torch.bfloat16:
        return f"they are for bf16, and the weights are {str(dtype).removeprefix('torch.')}"
    if model.head_dim not in decode.HEAD_DIMS:
        sizes = " or ".join(map(str, decode.HEAD_DIMS))
        return f"they are for heads of {sizes}, and the model's are of {model.head_dim}"
    if model.num_loops > 1 and not (model.shift and model.has_gates):
        return "they are for loops that run at once, and share the keys of the first"
    widths = {
        "hidden_size": model.hidden_size,
        "ffn_hidden_size of a rank": model.ffn_hidden_size // split.size,
    }
    for name, width in widths.items():
        if width % 8:
            return f"they are for widths that are multiples of 8, and {name} is {width}"
    return None


def _gates(layer: LayerWeights, rows: Tensor, model: ModelConfig) -> Tensor | None:
    """Return the gates' logits of all loops, of which the first has no use; None: they depend on
    queries. [B * R, heads]"""
    gate = layer.gate
    assert gate is not None
    if gate.norm is None:
        return None
    bias = gate.bias.expand(len(rows), -1)
    return decode.linear(rows, gate.weight, norm=gate.norm, eps=model.norm_eps, added=bias)


def _attend(
    layer: LayerWeights,
    q: Tensor,
    kept: KV,
    rings: KV | None,
    places: Tensor,
    positions: Tensor,
    gates: Tensor | None,
) -> Tensor:
    if rings is not None:
        assert layer.gate is not None
        if gates is None:
            # the product leaves heads apart, and the kernel reads them as neighbours
            gates = gate_of_queries(layer.gate, q[:, 1:]).contiguous()
        else:
            gates = gates.unflatten(0, q.shape[:2])[:, 1:]
    return decode.attention(q, kept, rings, places, positions, gates)


def _add(split: Split, rows: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return the residual stream with a product of which each rank has a part."""
    return split.sum(decode.linear(x, weight, added=rows if split.rank == 0 else None))
