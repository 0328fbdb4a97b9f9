"""Attention of decoding in plain PyTorch: of one token in several loops, and of prompts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from loopcoder.config.schema import ModelConfig
from loopcoder.infer.split import Split
from loopcoder.ops.gated_window import attention, gated_mixture

_BLOCK = 512
"""Queries of a window at a time, so that its mask stays small whatever a prompt's length."""


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    ring_k: Tensor | None,
    ring_v: Tensor | None,
    places: Tensor,
    lengths: Tensor,
    gate_logits: Tensor | None,
) -> Tensor:
    """Attend with one token of each place in R loops at once.

    All loops read the same global keys and values, as if a K/V head had R times the query heads.
    The last rows, one for each ring, mix that with attention to their own ring by their gate.

    Args:
        q: After RoPE. [B, R, heads, head_dim]
        k_cache, v_cache: Of all tokens, the new one's too. [places, kv_heads, max_length, head_dim]
        ring_k, ring_v: Of later loops, the new token's too; None: no row has one.
            [places, R-1, kv_heads, window + 1, head_dim], or as many as the gated rows.
        places: [B]
        lengths: Tokens of each, the new one too. [B]
        gate_logits: [B, R-1, heads]

    Returns:
        [B, R, heads, head_dim]
    """
    batch, loops, heads, width = q.shape
    kv_heads = k_cache.shape[1]
    # the queries of a K/V head as rows of one product
    by_head = q.unflatten(2, (kv_heads, -1)).transpose(1, 2)  # [B, kv_heads, R, share, head_dim]
    out = _attend(by_head.flatten(2, 3), k_cache[places], v_cache[places], lengths)
    out = out.unflatten(2, (loops, -1)).transpose(1, 2).reshape(batch, loops, heads, width)
    if ring_k is None or ring_v is None:
        return out
    assert gate_logits is not None
    later = ring_k.shape[1]
    own = _attend(
        q[:, -later:].unflatten(2, (kv_heads, -1)).flatten(0, 1),
        ring_k[places].flatten(0, 1),
        ring_v[places].flatten(0, 1),
        lengths.repeat_interleave(later, output_size=batch * later),
    )
    own = own.reshape(batch, later, heads, width)
    mixed = gated_mixture(gate_logits, out[:, -later:], own)
    return mixed if later == loops else torch.cat([out[:, :-later], mixed], 1)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend to all tokens s <= t of a prompt.

    Args:
        q: [S, 1, heads, head_dim]
        k, v: [S, 1, kv_heads, head_dim]
    """
    return _attention(q, k, v, None)


def windowed(q: Tensor, k: Tensor, v: Tensor, window: int) -> Iterator[tuple[slice, Tensor]]:
    """Attend to tokens t-window <= s <= t of a prompt; shapes as of `causal`. Yield some tokens
    after the other, with which they are."""
    for begin in range(0, len(q), _BLOCK):
        end, first = min(begin + _BLOCK, len(q)), max(0, begin - window)
        distance = torch.arange(begin, end, device=q.device)[:, None] - torch.arange(
            first, end, device=q.device
        )
        mask = (distance >= 0) & (distance <= window)
        seen = slice(first, end)
        yield slice(begin, end), _attention(q[begin:end], k[seen], v[seen], mask[None, None])


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    # of fp32 on a GPU PyTorch has no fused attention with grouped heads: it would hold all weights
    is_slow = q.is_cuda and q.dtype == torch.float32 and q.shape[2] != k.shape[2]
    return by_share(q, k, v, mask) if is_slow else attention(q, k, v, mask)


def by_share(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Do what `ops.gated_window.attention` does, with a query head of each K/V head at a time."""
    grouped = q.unflatten(2, (k.shape[2], -1))
    return torch.stack([attention(x, k, v, mask) for x in grouped.unbind(3)], 3).flatten(2, 3)


def step_bytes(
    model: ModelConfig, num_places: int, max_length: int, dtype: torch.dtype, split: Split
) -> int:
    """Return the memory that a step takes at most besides weights and cache where it is in plain
    PyTorch: the keys and values of a layer of all places, and their rings, side by side."""
    tokens = max_length
    if model.has_gates:
        tokens += (model.num_loops - 1) * (model.window + 1)
    kv_heads = model.num_kv_heads // split.size
    return 2 * num_places * tokens * kv_heads * model.head_dim * dtype.itemsize


def _attend(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
    """All queries see the first keys, as many as `lengths` says; of a ring that is full all.

    Args:
        q: [N, kv_heads, queries, head_dim]
        k, v: [N, kv_heads, T, head_dim]
        lengths: [N]
    """
    seen = torch.arange(k.shape[2], device=k.device) < lengths[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])
