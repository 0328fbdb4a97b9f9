"""The layers of a decoder, on tokens in one loop or in several at once.

`fused_layers.py` does the same for a step on a GPU, with kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from loopcoder.config.schema import ModelConfig
from loopcoder.infer.split import Split
from loopcoder.infer.weights import GateWeights, LayerWeights, ModelWeights
from loopcoder.ops.gate_logits import gate_logits

ROWS = 8192
"""Rows at a time of what takes much memory besides its output: the MLP, and RoPE in fp32."""
_HEAD_ROWS = 1024
"""Rows of a head at a time that are made fp32."""


class Rope(NamedTuple):
    """Rotary embedding of tokens, in fp32. [N, 1, 1, head_dim] each"""

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, model: ModelConfig) -> Rope:
        """positions: [N]"""
        pairs = torch.arange(0, model.head_dim, 2, device=positions.device).float()
        frequency = 1.0 / model.rope_theta ** (pairs / model.head_dim)
        angle = positions.float()[:, None] * frequency
        angle = torch.cat([angle, angle], -1)[:, None, None]
        return cls(angle.cos(), angle.sin())

    def rotate(self, x: Tensor) -> Tensor:
        """x: [N, loops, heads, head_dim]"""
        if len(x) <= ROWS:
            return _rotate(x, self.cos, self.sin)
        parts = zip(*(y.split(ROWS) for y in (x, self.cos, self.sin)), strict=True)
        return torch.cat([_rotate(*part) for part in parts])


Attend = Callable[[int, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Maps the index of a layer, q [N, loops, heads, head_dim] and k [N, loops, kv_heads, head_dim]
after RoPE, v, and the logits of the gates [N, gated, heads] (None: there are none) to attention
[N, loops, heads, head_dim]; it keeps k and v."""


def run_layers(
    weights: ModelWeights,
    model: ModelConfig,
    split: Split,
    hidden: Tensor,
    rope: Rope,
    gated: int,
    attend: Attend,
) -> tuple[Tensor, Tensor]:
    """Run tokens through all layers.

    Args:
        hidden: Input of each token in each loop. [N, loops, D]
        rope: Of the tokens.
        gated: How many of the loops, the last ones, mix two attentions.

    Returns:
        the residual stream after the last layer, before and after the final norm. [N, loops, D]
    """
    norms = [*(layer.input_norm for layer in weights.layers[1:]), weights.final_norm]
    normed = _norm(hidden, weights.layers[0].input_norm, model.norm_eps)
    for index, (layer, next_norm) in enumerate(zip(weights.layers, norms, strict=True)):
        out = _attention(layer, model, hidden, normed, rope, gated, partial(attend, index))
        hidden, normed = _add_norm(hidden, split.sum(out), layer.mlp_norm, model.norm_eps)
        hidden, normed = _add_norm(
            hidden, split.sum(_feed_forward(layer, normed)), next_norm, model.norm_eps
        )
    return hidden, normed


def _attention(
    layer: LayerWeights,
    model: ModelConfig,
    hidden: Tensor,
    normed: Tensor,
    rope: Rope,
    gated: int,
    attend: Callable[..., Tensor],
) -> Tensor:
    q, k, v = _project(layer, normed, model)
    q, k = rope.rotate(q), rope.rotate(k)
    gates = None
    if gated and layer.gate is not None:
        gates = _gate(layer.gate, hidden[:, -gated:], q[:, -gated:], model.norm_eps)
    return F.linear(attend(q, k, v, gates).flatten(2), layer.output)


def head(normed: Tensor, weight: Tensor) -> Tensor:
    """Return logits in fp32 at least, whatever the weights are in: they are never rounded to bf16.
    [N, D] -> [N, rows of the weight]"""
    if weight.dtype.itemsize >= torch.float32.itemsize:
        return F.linear(normed, weight)
    if normed.is_cuda:
        return torch.mm(normed, weight.t(), out_dtype=torch.float32)
    # on a CPU no product has another type than its factors
    exact = normed.float()
    return torch.cat([F.linear(exact, part.float()) for part in weight.split(_HEAD_ROWS)], -1)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def _add_norm(x: Tensor, more: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the sum, and its norm."""
    x = x + more
    return x, _norm(x, weight, eps)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    first, second = y.chunk(2, -1)
    return (y * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


def _project(
    layer: LayerWeights, normed: Tensor, model: ModelConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Return q [N, loops, heads, head_dim], and k and v [N, loops, kv_heads, head_dim]."""
    share = model.num_attention_heads // model.num_kv_heads
    by_head = F.linear(normed, layer.qkv).unflatten(-1, (-1, share + 2, model.head_dim))
    q, k, v = by_head.split([share, 1, 1], -2)
    return q.flatten(2, 3), k.squeeze(-2), v.squeeze(-2)


def _gate(gate: GateWeights, hidden: Tensor, q: Tensor, eps: float) -> Tensor:
    """Return the logits of the gates (plt.md section 2). [N, gated, heads]

    Args:
        hidden: The residual stream before the layer's first norm. [N, gated, D]
        q: [N, gated, heads, head_dim]
    """
    if gate.norm is None:
        return gate_of_queries(gate, q)
    return gate_logits(hidden, gate.norm, gate.weight, gate.bias, eps)


def gate_of_queries(gate: GateWeights, q: Tensor) -> Tensor:
    """Return the logits of gates that read queries after RoPE, [N, gated, heads, head_dim].
    [N, gated, heads]"""
    return torch.einsum("nghd,hd->ngh", q, gate.weight) + gate.bias


def _feed_forward(layer: LayerWeights, normed: Tensor) -> Tensor:
    def run(x: Tensor) -> Tensor:
        gate, up = F.linear(x, layer.gate_up).chunk(2, -1)
        return F.linear(F.silu(gate) * up, layer.down)

    if len(normed) <= ROWS:
        return run(normed)
    return torch.cat([run(part) for part in normed.split(ROWS)])
