"""The effective rank of a matrix: how many directions its rows use.

It is exp(-sum s log s) over the singular values s, scaled to sum 1 (Roy and Vetterli 2007). They
are the roots of the eigenvalues of the smaller Gram matrix, in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def effective_rank(states: Tensor) -> Tensor:
    """Return the effective rank of the RMS-normalised states of a sequence.

    Each row is divided by its root mean square (a row of zeros stays one); no mean is taken off.

    Args:
        states: one row per token. [T, D] or [N, T, D]

    Returns:
        float64, [] or [N]; NaN where all states are zero, or one is not finite.
    """
    rows = states.double()
    square = rows.square().mean(-1, keepdim=True)
    rows = rows * torch.where(square == 0, 1.0, square).rsqrt()
    tokens, width = rows.shape[-2:]
    return rank_of_gram(rows @ rows.mT if tokens <= width else rows.mT @ rows)


def rank_of_gram(gram: Tensor) -> Tensor:
    """Return the effective rank of a matrix M from M M^T or M^T M, whichever is the smaller.

    What rounding leaves of an eigenvalue of zero, n eps times the largest at most, counts as zero.

    Args:
        gram: float64. [..., n, n]

    Returns:
        float64, [...]; NaN for a matrix of zeros, or with a value that is not finite.
    """
    finite = gram.isfinite().all(-1).all(-1)
    eigenvalues = torch.linalg.eigvalsh(torch.where(finite[..., None, None], gram, 0.0))
    noise = gram.shape[-1] * torch.finfo(gram.dtype).eps * eigenvalues[..., -1:]
    singular = eigenvalues.where(eigenvalues > noise, 0.0).sqrt()
    share = singular / singular.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()
