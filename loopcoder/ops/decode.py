"""The kernels for decoding (kernels/decode_*.cu): bf16, a GPU, no gradients.

Their plain counterparts are in `infer/layers.py` and `infer/attention.py`. Weights are read before
the kernel in front has ended, so no kernel of the same stream may write them just before.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ROWS = 4
"""Of a product by the kernel, which takes 8; cuBLAS is faster from 5 on (docs/performance.md)."""
HEAD_DIMS = (64, 128)
SHARED_KIB = 107
"""Shared memory that a block of a product takes, in KiB: its ring and 42 KiB of x."""
HAVE_SHARED = ((8, 0), (8, 7), (9, 0), (10, 0), (10, 3))
"""Compute capabilities whose blocks can have as much; 8.6, 8.9 and 12.0 give 99 KiB."""
KV = tuple[Tensor, Tensor]


def linear(
    x: Tensor,
    weight: Tensor,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    swiglu: bool = False,
    added: Tensor | None = None,
    to_float: bool = False,
) -> Tensor:
    """Return added + W RMSNorm(x), with sums in fp32.

    Args:
        x: [N, in]; rows may have any distance that is a multiple of 8.
        weight: [out, in]
        norm: Weight of the norm [in]; None: x is taken as it is.
        eps: Of the norm.
        swiglu: The weight is [2 out, in], gate and then up: silu(gate) * up comes in place of it.
        added: [N, out], also a bias that is expanded.
        to_float: Return fp32, which was never rounded to bf16.
    """
    if len(x) <= MAX_ROWS:
        return torch.ops.loopcoder.decode_linear(x, weight, norm, eps, swiglu, added, to_float)
    x = x if norm is None else F.rms_norm(x, norm.shape, norm, eps)
    out = torch.mm(x, weight.t(), out_dtype=torch.float32) if to_float else F.linear(x, weight)
    if swiglu:
        gate, up = out.chunk(2, -1)
        out = F.silu(gate) * up
    return out if added is None else out + added


def rotate(
    qkv: Tensor, cos: Tensor, sin: Tensor, kept: KV, rings: KV | None, places: Tensor,
    positions: Tensor,
) -> Tensor:  # fmt: skip
    """Keep k after RoPE and v of a token in R loops, and return q after RoPE.

    Args:
        qkv: By K/V head its query heads, its K and its V.
            [B, R, (heads + 2 kv_heads) * head_dim]
        cos, sin: Of each token, for both halves of a head, in fp32. [B, head_dim]
        kept: Keys and values of all tokens, of loop 0: written. [places, kv_heads, T, head_dim]
        rings: Of the last tokens, of later loops: written at position modulo their size.
            [places, R-1, kv_heads, window + 1, head_dim]
        places, positions: Of each token, int64. [B]

    Returns:
        [B, R, heads, head_dim]
    """
    return torch.ops.loopcoder.decode_rotate(
        qkv, cos, sin, *kept, *(rings or (None, None)), places, positions
    )


def attention(
    q: Tensor, kept: KV, rings: KV | None, places: Tensor, positions: Tensor, gates: Tensor | None
) -> Tensor:  # fmt: skip
    """Attend with a token in R loops at once, whose own keys and values are kept already.

    All loops read what is kept of loop 0; later loops mix that with attention to their ring, where
    the gate weighs the first.

    Args:
        q: After RoPE. [B, R, heads, head_dim]
        kept, rings, places, positions: As of `rotate`.
        gates: Logits. [B, R-1, heads]

    Returns:
        [B, R, heads, head_dim]
    """
    scale = q.shape[-1] ** -0.5
    return torch.ops.loopcoder.decode_attention(
        q, *kept, *(rings or (None, None)), places, positions, gates, scale
    )
