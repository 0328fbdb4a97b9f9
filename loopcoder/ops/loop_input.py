"""The input of a later loop: a*E + b*shift(h), reset at document starts."""

from __future__ import annotations

import torch
from torch import Tensor


def loop_input(
    embedding: Tensor,
    hidden: Tensor,
    before: Tensor | None,
    first_token: Tensor,
    a: float,
    b: float,
) -> Tensor:
    """Return a*E + b*S, where S is `hidden` one position to the right and 0 on the first token of a
    document (plt.md section 2).

    Args:
        embedding: E. [S, B, D]
        hidden: the previous loop's output. [S, B, D]
        before: the position before the first of `hidden`, where a sequence is split. [1, B, D];
            None: zeros.
        first_token: whether a position begins a document. [S, B], bool
    """
    before = torch.zeros_like(hidden[:1]) if before is None else before
    shifted = torch.cat([before, hidden[:-1]])
    return a * embedding + b * shifted.masked_fill(first_token[..., None], 0.0)
