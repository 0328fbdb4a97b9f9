"""Attention of a later loop: a gated mixture of global attention over loop 0's K/V and a window
over its own.

This is the reference: plain PyTorch, on CPU and GPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention with grouped K/V heads.

    Args:
        q: [S, B, heads, head_dim]
        k, v: [S, B, kv_heads, head_dim]
        mask: True where query t may see key s, or what is added to their score. [B or 1, 1, S, S];
            None: plain causal.

    Returns:
        [S, B, heads, head_dim]
    """
    q, k, v = (x.permute(1, 2, 0, 3) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.permute(2, 0, 1, 3)


def gated_mixture(gate_logits: Tensor, global_out: Tensor, window_out: Tensor) -> Tensor:
    """Return g*global + (1-g)*window with g = sigmoid(logits): the gate weighs the GLOBAL branch.

    Args:
        gate_logits: one per query head. [S, B, heads]
        global_out, window_out: [S, B, heads, head_dim]
    """
    exact = torch.promote_types(global_out.dtype, torch.float32)
    gate = torch.sigmoid(gate_logits.to(exact))[..., None]
    mixed = gate * global_out.to(exact) + (1 - gate) * window_out.to(exact)
    return mixed.to(global_out.dtype)
