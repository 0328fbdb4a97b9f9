"""SwiGLU in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def swiglu(x: Tensor) -> Tensor:
    """Return SiLU of the first half of the last dimension times the second half.

    Args:
        x: [..., 2F]

    Returns:
        [..., F]
    """
    return _SwiGLU.apply(x)


class _SwiGLU(torch.autograd.Function):
    """Its backward pass writes both halves of the gradient where they belong; autograd would join
    them in a pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        activated = F.silu(gate)
        ctx.save_for_backward(x, activated)
        return activated * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, activated = ctx.saved_tensors
        gate, up = x.chunk(2, -1)
        d_x = torch.empty_like(x)
        d_gate, d_up = d_x.chunk(2, -1)
        torch.mul(grad, activated, out=d_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=d_gate)
        return d_x
