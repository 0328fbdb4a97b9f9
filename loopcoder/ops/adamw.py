"""One AdamW update of one fp32 tensor in one pass over memory (Triton)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from loopcoder.ops.step_numbers import step_numbers

_BLOCK = 2048


def adamw_(
    p: Tensor,
    g: Tensor | None,
    m: Tensor,
    v: Tensor,
    divisor: Tensor,
    refused: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    numbers: Tensor | None = None,
) -> None:
    """Update p, m and v in place; the formula is `torch.optim.AdamW`'s.

    Args:
        p, g, m, v: parameter, gradient, first and second moment; fp32, contiguous, of one shape.
        divisor: g is divided by it on the way. []
        refused: anything but 0 leaves everything as it is. []
        step: updates done, this one included.
        numbers: `step_numbers` on the device, which a CUDA graph reads anew at every replay; None:
            they are computed of `step`, `lr` and `weight_decay`, with the same bits. [3], fp32

    Raises ValueError for tensors that the kernel cannot take.
    """
    if g is None or any(x.dtype != torch.float32 or not x.is_contiguous() for x in (p, g, m, v)):
        raise ValueError("adamw_ takes contiguous fp32 tensors")
    count = p.numel()
    decay, rate, root_scale = step_numbers(step, lr, betas, weight_decay)
    _adamw_kernel[(triton.cdiv(count, _BLOCK),)](
        p,
        g,
        m,
        v,
        divisor,
        refused,
        refused if numbers is None else numbers,
        count,
        decay,
        betas[0],
        betas[1],
        eps,
        rate,
        root_scale,
        READS_NUMBERS=numbers is not None,
        BLOCK=_BLOCK,
        num_warps=8,
    )


@triton.jit(do_not_specialize=["count"])
def _adamw_kernel(
    p_at,
    g_at,
    m_at,
    v_at,
    divisor_at,
    refused_at,
    numbers_at,
    count,
    decay,
    beta1,
    beta2,
    eps,
    rate,
    root_scale,
    READS_NUMBERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if tl.load(refused_at) != 0.0:
        return
    if READS_NUMBERS:
        decay = tl.load(numbers_at)
        rate = tl.load(numbers_at + 1)
        root_scale = tl.load(numbers_at + 2)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(g_at + at, inside) / tl.load(divisor_at)
    m = beta1 * tl.load(m_at + at, inside) + (1.0 - beta1) * g
    v = beta2 * tl.load(v_at + at, inside) + (1.0 - beta2) * g * g
    p = tl.load(p_at + at, inside)
    p_new = p - decay * p - rate * m / (tl.sqrt(v) * root_scale + eps)
    tl.store(p_at + at, p_new, inside)
    tl.store(m_at + at, m, inside)
    tl.store(v_at + at, v, inside)
