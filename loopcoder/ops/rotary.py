"""Queries, keys and values out of one projection, with rotary positions, in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotated_heads(projected: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take queries, keys and values apart, and turn queries and keys by their positions.

    Args:
        projected: for each group its query heads, its key and its value. [S, B, groups,
            heads + 2, head_dim]
        rope: cosines and sines of the pairs (first half, second half) of a head, twice. [2, S, 1
            or B, 1, head_dim]

    Returns:
        q [S, B, groups * heads, head_dim]; k and v [S, B, groups, head_dim]
    """
    cos, sin = rope.to(projected.dtype).unsqueeze(-2)
    return _RotatedHeads.apply(projected, cos, sin)


class _RotatedHeads(torch.autograd.Function):
    """Both passes write each head once, to its place; of slices autograd would make a whole
    gradient each, and add them up."""

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        q_in, k_in, v = projected.tensor_split((-2, -1), dim=-2)
        q, k = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_in, k_in))
        _rotate(q_in, cos, sin, q)
        _rotate(k_in, cos, sin, k)
        return q.flatten(2, 3), k.squeeze(-2), v.squeeze(-2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_q: Tensor, d_k: Tensor, d_v: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        groups, heads = d_k.shape[2], d_q.shape[2] // d_k.shape[2]
        shape = (*d_k.shape[:3], heads + 2, d_k.shape[3])
        d_projected = torch.empty(shape, dtype=d_k.dtype, device=d_k.device)
        to_q, to_k, to_v = d_projected.tensor_split((-2, -1), dim=-2)
        _rotate(d_q.unflatten(2, (groups, heads)), cos, -sin, to_q)
        _rotate(d_k.unsqueeze(-2), cos, -sin, to_k)
        to_v.copy_(d_v.unsqueeze(-2))
        return d_projected, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Write x, turned, to `out`. [S, B, groups, heads, head_dim]"""
    torch.mul(x, cos, out=out)
    half = x.shape[-1] // 2
    out[..., :half].addcmul_(x[..., half:], sin[..., half:], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., :half])
