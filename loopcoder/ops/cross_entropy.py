"""Cross-entropy over a vocabulary that is not split, in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of every token, in fp32 or wider.

    Args:
        logits: [..., V]
        labels: [...], int64
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    return _CrossEntropy.apply(logits.to(exact), labels[..., None])


class _CrossEntropy(torch.autograd.Function):
    """PyTorch's writes the gradient of the logarithms first, which is 0 but for the labels."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        logs = F.log_softmax(logits, -1)
        ctx.save_for_backward(logs, labels)
        return -logs.gather(-1, labels).squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logs, labels = ctx.saved_tensors
        d_logits = logs.exp()
        d_logits.scatter_add_(-1, labels, d_logits.new_full((1,), -1.0).expand_as(labels))
        return d_logits.mul_(grad[..., None]), None
