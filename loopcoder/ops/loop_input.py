"""The input of a later loop: a*E + b*shift(h), reset at document starts."""

from __future__ import annotations

import torch
from torch import Tensor


def shift_right(hidden: Tensor) -> Tensor:
    """Move every position of `hidden` [S, B, D] one to the right; zeros come in."""
    return torch.cat([torch.zeros_like(hidden[:1]), hidden[:-1]])


def loop_input(
    embedding: Tensor, shifted: Tensor, first_token: Tensor, a: float, b: float
) -> Tensor:
    """Return a*E + b*S, with S = 0 on the first token of a document (plt.md section 2).

    Args:
        embedding: E. [S, B, D]
        shifted: the previous loop's output, already shifted. [S, B, D]
        first_token: whether a position begins a document. [S, B], bool
    """
    return a * embedding + b * shifted.masked_fill(first_token[..., None], 0.0)
