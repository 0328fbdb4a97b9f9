"""A Parallel Loop Transformer written down from the equations, sharing no code with the package.

One sequence at a time, dense masks, one dictionary of weights under the released model's names. It
runs in whatever precision its weights have; tests use float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def rope(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x: [T, heads, d]; the first and second half of d are the pairs."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = (positions.double()[:, None] * frequency).to(x.dtype)[:, None]
    x1, x2 = x[..., :half], x[..., half:]
    return torch.cat([x1 * angle.cos() - x2 * angle.sin(), x2 * angle.cos() + x1 * angle.sin()], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """q: [T, H, d]; k, v: [T, G, d]; allowed: [T, T]. Head h reads K/V head h // (H/G)."""
    share = q.shape[1] // k.shape[1]
    out = torch.zeros_like(q)
    for head in range(q.shape[1]):
        score = q[:, head] @ k[:, head // share].T / math.sqrt(q.shape[-1])
        weight = score.masked_fill(~allowed, -math.inf).softmax(-1)
        out[:, head] = weight @ v[:, head // share]
    return out


def forward(
    w: dict[str, Tensor],
    ids: Tensor,
    start: Tensor,
    *,
    layers: int,
    heads: int,
    kv_heads: int,
    loops: int,
    window: int,
    theta: float,
    eps: float,
    a: float,
    b: float,
    shift: bool = True,
    own_kv: bool = False,
    norm_per_loop: bool = True,
    gate: str = "hidden",
    untied: list[dict[str, Tensor]] | None = None,
    embedding: Tensor | None = None,
) -> list[Tensor]:
    """Return the logits after every loop, each [T, V].

    ids: [T]; start: index of the first token of each position's document [T]. `untied` gives each
    loop its own copy of the weights; `embedding` replaces the looked-up embeddings.
    """
    length = len(ids)
    index = torch.arange(length)
    position = index - start
    allowed = (index[None] <= index[:, None]) & (index[None] >= start[:, None])
    near = allowed & (index[:, None] - index[None] <= window)
    copies = untied or [w] * loops
    e = w["model.embed_tokens.weight"][ids] if embedding is None else embedding
    h, kept, logits = e, {}, []
    for r in range(loops):
        w_r = copies[r]
        if r > 0:
            s = h
            if shift:
                s = torch.zeros_like(h)
                for t in range(1, length):
                    if position[t] > 0:
                        s[t] = h[t - 1]
            h = a * e + b * s
        for layer in range(layers):
            p = f"model.layers.{layer}."
            x = rms_norm(h, w_r[p + "input_layernorm.weight"], eps)
            q, k, v = (
                (x @ w_r[p + f"self_attn.{n}_proj.weight"].T).view(length, count, -1)
                for n, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
            )
            q, k = rope(q, position, theta), rope(k, position, theta)
            if r == 0 or own_kv:
                kept[layer] = (k, v)
                o = attend(q, k, v, allowed)
            else:
                g_in = p + "self_attn.plt_gate."
                if gate == "hidden":
                    normed = rms_norm(h, w_r[g_in + "gate_norm.weight"], eps)
                    logit = normed @ w_r[g_in + "weight"].T + w_r[g_in + "bias"]
                else:
                    logit = (q * w_r[g_in + "weight"]).sum(-1) + w_r[g_in + "bias"]
                g = torch.sigmoid(logit)[..., None]
                o = g * attend(q, *kept[layer], allowed) + (1 - g) * attend(q, k, v, near)
            h = h + o.reshape(length, -1) @ w_r[p + "self_attn.o_proj.weight"].T
            x = rms_norm(h, w_r[p + "post_attention_layernorm.weight"], eps)
            gated = torch.nn.functional.silu(x @ w_r[p + "mlp.gate_proj.weight"].T)
            h = (
                h
                + (gated * (x @ w_r[p + "mlp.up_proj.weight"].T))
                @ w_r[p + "mlp.down_proj.weight"].T
            )
        normed = rms_norm(h, w_r["model.norm.weight"], eps)
        if norm_per_loop:
            h = normed
        logits.append(normed @ w_r["lm_head.weight"].T)
    return logits
