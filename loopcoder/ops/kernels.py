"""The CUDA extension (kernels/, built by setup.py) and its operators, `torch.ops.loopcoder.*`.

Their plain PyTorch counterparts are in `gated_window.py`, `gate_logits.py` and `loop_input.py`. The
operators for decoding are called by `decode.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from loopcoder.backends import KERNELS, kernels_fault


@functools.cache
def load() -> None:
    """Load the extension, once per process.

    Raises RuntimeError where it is missing or was built for another torch or from other sources;
    `config/check.py` tells users before that.
    """
    fault = kernels_fault()
    if fault is not None:
        raise RuntimeError(f"{fault}: make kernels, or pip install --no-build-isolation -e .")
    torch.ops.load_library(str(KERNELS))
    _register()


def gated_attention(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    gate: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shared: tuple[Tensor, Tensor],
    start: Tensor | None,
    window: int,
) -> Tensor:
    """Return g * attend(q, *shared) + (1-g) * window(q, k, v), as one step of autograd.

    The backward pass of `attend` needs g*dO, and the window's part of dq is added in place to
    the one that it returns; left to autograd, that would be one more pass over three tensors.

    Args:
        attend: the global attention, differentiable; [S, B, heads, head_dim] like q.
        gate: logits of g = sigmoid(gate), which weighs the global branch. [S, B, heads]
        q: [S, B, heads, head_dim], bf16 or fp16
        k, v: this loop's, [S, B, kv_heads, head_dim]
        shared: loop 0's keys and values for `attend`.
        start: index of the first token of each position's document [B, S], int64; None: a row is
            one document.
        window: keys t-window..t are seen.
    """
    inputs = (gate, q, k, v, *shared)
    has_backward = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    return _GatedAttention.apply(attend, start, window, has_backward, *inputs)


class _GatedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        attend: Callable[..., Tensor],
        start: Tensor | None,
        window: int,
        has_backward: bool,
        gate: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *shared: Tensor,
    ) -> Tensor:
        ops = torch.ops.loopcoder
        # a graph of its own, for this function's backward pass
        inputs = [x.detach().requires_grad_(has_backward) for x in (q, *shared)]
        with torch.set_grad_enabled(has_backward):
            global_out = attend(*inputs)
        scale = 1.0 / math.sqrt(q.shape[-1])
        out, lse = ops.gated_window_forward(
            q, k, v, gate, global_out.detach(), start, window, scale
        )
        ctx.save_for_backward(gate, q, k, v, lse)
        ctx.start, ctx.window, ctx.scale = start, window, scale
        ctx.inner = global_out, inputs
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        ops = torch.ops.loopcoder
        gate, q, k, v, lse = ctx.saved_tensors
        if ctx.inner is None:
            raise RuntimeError(
                "the backward pass of gated_attention runs once: it frees the graph of the global "
                "attention, so retain_graph=True has no effect on it"
            )
        global_out, inputs = ctx.inner
        ctx.inner = None
        d_out = d_out.contiguous()
        scaled, dot = ops.gated_window_prepare(d_out, gate, global_out.detach())
        d_q, d_k0, d_v0 = torch.autograd.grad(global_out, inputs, scaled)
        d_q = d_q.contiguous()
        d_k, d_v, d_gate = ops.gated_window_backward(
            d_out, q, k, v, gate, dot, lse, ctx.start, ctx.window, ctx.scale, d_q
        )
        return None, None, None, None, d_gate, d_q, d_k, d_v, d_k0, d_v0


class GateLogits(torch.autograd.Function):
    """W RMSNorm(h) + b; see `gate_logits.gate_logits`.

    The norm's weight goes into W, and the norm's gradient needs of each row only what is known from
    the logits; so each pass reads h once, and nothing of its size is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        h, folded = h.contiguous(), weight * norm
        logits, raw, rms = torch.ops.loopcoder.gate_logits_forward(h, folded, bias, eps)
        ctx.save_for_backward(raw, rms, h, folded, weight, norm)
        return logits

    @staticmethod
    def backward(ctx: Any, d_logits: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        d_logits = d_logits.contiguous()
        d_h, d_weight, d_norm = torch.ops.loopcoder.gate_logits_backward(
            d_logits, *ctx.saved_tensors
        )
        return d_h, d_norm, d_weight, d_logits.sum((0, 1)), None


class LoopInput(torch.autograd.Function):
    """a*E + b*shift(h) with resets; see `loop_input.loop_input`."""

    @staticmethod
    def forward(
        ctx: Any,
        embedding: Tensor,
        hidden: Tensor,
        before: Tensor | None,
        first_token: Tensor,
        a: float,
        b: float,
    ) -> Tensor:
        ctx.save_for_backward(first_token)
        ctx.scales, ctx.has_before = (a, b), before is not None
        return torch.ops.loopcoder.loop_input_forward(
            embedding.contiguous(), hidden.contiguous(), before, first_token, a, b
        )

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        (first_token,) = ctx.saved_tensors
        d_embedding, d_hidden, d_before = torch.ops.loopcoder.loop_input_backward(
            d_out.contiguous(), first_token, *ctx.scales, ctx.has_before
        )
        return d_embedding, d_hidden, d_before if ctx.has_before else None, None, None, None


def _refuse_second_derivative() -> None:
    """Call it in a backward pass: with create_graph=True, autograd would leave out what goes
    through the kernels. (PyTorch's `once_differentiable` refuses some of these cases only.)"""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the CUDA kernels have no second derivative: leave out create_graph=True, or take "
            "model.kernels=stock"
        )


def _register() -> None:
    """Tell torch.compile shapes (fake kernels) and gradients of the operators."""
    library = torch.library

    @library.register_fake("loopcoder::gated_window_forward")
    def _(q, k, v, gate, global_out, start, window, scale):
        seq, batch, heads, _ = q.shape
        lse = q.new_empty((batch, heads, seq), dtype=torch.float32)
        return q.new_empty(q.shape), lse

    @library.register_fake("loopcoder::gated_window_backward")
    def _(d_out, q, k, v, gate, dot, lse, start, window, scale, d_q, portable=False):
        return k.new_empty(k.shape), k.new_empty(k.shape), gate.new_empty(gate.shape)

    @library.register_fake("loopcoder::gated_window_prepare")
    def _(d_out, gate, global_out):
        seq, batch, heads, _ = d_out.shape
        dot = d_out.new_empty((batch, heads, seq), dtype=torch.float32)
        return d_out.new_empty(d_out.shape), dot

    @library.register_fake("loopcoder::gate_logits_forward")
    def _(h, folded, bias, eps):
        shape = (*h.shape[:2], len(folded))
        raw = h.new_empty(shape, dtype=torch.float32)
        return h.new_empty(shape), raw, raw.new_empty(h.shape[0] * h.shape[1])

    @library.register_fake("loopcoder::gate_logits_backward")
    def _(d_logits, raw, rms, h, folded, weight, norm):
        return torch.empty_like(h), torch.empty_like(weight), torch.empty_like(norm)

    @library.register_fake("loopcoder::loop_input_forward")
    def _(embedding, hidden, before, first_token, a, b):
        return torch.empty_like(embedding)

    @library.register_fake("loopcoder::loop_input_backward")
    def _(d_out, first_token, a, b, has_before):
        before = d_out.new_empty((int(has_before), *d_out.shape[1:]))
        return torch.empty_like(d_out), torch.empty_like(d_out), before

    @library.register_fake("loopcoder::decode_linear")
    def _(x, weight, norm, eps, swiglu, added, to_float):
        shape = len(x), len(weight) // (1 + swiglu)
        return x.new_empty(shape, dtype=torch.float32 if to_float else x.dtype)

    @library.register_fake("loopcoder::decode_rotate")
    def _(qkv, cos, sin, k, v, ring_k, ring_v, places, positions):
        heads, head_dim = qkv.shape[2] // k.shape[3] - 2 * k.shape[1], k.shape[3]
        return qkv.new_empty((*qkv.shape[:2], heads, head_dim))

    @library.register_fake("loopcoder::decode_attention")
    def _(q, k, v, ring_k, ring_v, places, positions, gate, scale):
        return torch.empty_like(q)

    library.register_autograd(
        "loopcoder::gated_window_forward", _window_backward, setup_context=_save_window
    )


def _save_window(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, gate, global_out, ctx.start, ctx.window, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, gate, global_out, output[1])
    ctx.mark_non_differentiable(output[1])


def _window_backward(ctx: Any, d_out: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    _refuse_second_derivative()
    ops = torch.ops.loopcoder
    q, k, v, gate, global_out, lse = ctx.saved_tensors
    d_out, d_q = d_out.contiguous(), q.new_zeros(q.shape)
    d_global, dot = ops.gated_window_prepare(d_out, gate, global_out)
    d_k, d_v, d_gate = ops.gated_window_backward(
        d_out, q, k, v, gate, dot, lse, ctx.start, ctx.window, ctx.scale, d_q
    )
    return d_q, d_k, d_v, d_gate, d_global, None, None, None
