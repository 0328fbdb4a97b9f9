"""The precision in which measures compute."""

from __future__ import annotations

import torch
from torch import Tensor


def precise(x: Tensor) -> Tensor:
    """Return float64 as it is and everything else in fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
