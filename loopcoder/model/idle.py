"""Parameters that a step does not use: a gradient of zeros, from where they would have had one.

With one loop drawn no gate is computed. megatron-core's overlapped reduction waits for the gradient
of every parameter; without overlap it is zero as well, which is what stays in the buffer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def with_zero_gradients(hidden: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """Return `hidden`, whose backward pass also gives each parameter a gradient of zeros."""
    idle = tuple(parameters)
    return _ZeroGradients.apply(hidden, *idle) if idle else hidden


class _ZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)
