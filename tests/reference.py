"""A Parallel Loop Transformer written down from the equations, sharing no code with the package.

One sequence at a time, dense masks, one dictionary of weights under the released model's names. It
runs in whatever precision its weights have; tests use float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from loopcoder.config.schema import ModelConfig


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


def arguments(model: ModelConfig) -> dict[str, Any]:
    """Return what `forward` takes of a config."""
    return dict(
        layers=model.num_layers,
        heads=model.num_attention_heads,
        kv_heads=model.num_kv_heads,
        loops=model.num_loops,
        window=model.window,
        theta=model.rope_theta,
        eps=model.norm_eps,
        a=model.a,
        b=model.b,
        shift=model.shift,
        own_kv=model.kv_sharing == "own",
        norm_per_loop=model.norm_per_loop,
        gate=model.gate,
    )


def evaluate(
    weights: dict[str, Tensor],
    model: ModelConfig,
    tokens: Tensor,
    labels: Tensor,
    mask: Tensor,
    start: Tensor,
) -> dict[str, Tensor]:
    """Return logits of every loop, the mean loss and its gradients, in the weights' precision.

    tokens, labels, mask, start: [B, S]; start is the index of the first token of the document.
    """
    weights = {name: w.clone().requires_grad_() for name, w in weights.items()}
    rows = [forward(weights, *row, **arguments(model)) for row in zip(tokens, start, strict=True)]
    by_loop = [torch.stack([row[r] for row in rows], dim=1) for r in range(model.num_loops)]
    last = by_loop[-1].transpose(0, 1)
    loss = torch.nn.functional.cross_entropy(last.flatten(0, 1), labels.flatten(), reduction="none")
    loss = (loss.view(mask.shape) * mask).sum() / mask.sum()
    loss.backward()
    out = {f"logits {r}": x for r, x in enumerate(by_loop)} | {"loss": loss}
    return {name: x.detach() for name, x in out.items()} | {n: w.grad for n, w in weights.items()}


def rounding(exact: dict[str, Tensor], weights: dict[str, Tensor], *inputs: Any) -> float:
    """Return the worst error that `evaluate` makes in fp32; `exact` is what it gives in float64."""
    fp32 = {name: w.float() for name, w in weights.items()}
    return max(errors(evaluate(fp32, *inputs), exact).values())


def errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    return {name: relative(x, exact[name].double()) for name, x in found.items()}


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, as a part of the largest element of `theirs`."""
    return ((ours.double() - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)).item()
