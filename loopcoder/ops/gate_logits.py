"""The logits of the gate: a linear map of the normed residual stream."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from loopcoder.ops.rms_norm import rms_norm


def gate_logits(h: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return W RMSNorm(h) + b (plt.md section 2).

    This is the reference: plain PyTorch, on CPU and GPU.

    Args:
        h: the residual stream. [S, B, D]
        norm: weight of the RMSNorm. [D]
        weight, bias: of the map. [heads, D], [heads]
        eps: of the RMSNorm.

    Returns:
        [S, B, heads]
    """
    return F.linear(rms_norm(h, norm, eps), weight, bias)
