"""How far the states move from loop to loop, and from token to token.

`h(0)` is the embedding E; `h(r)` is the output of loop r, raw (the residual stream) or normed
(after the shared final norm). E is neither: it is the same in both variants. Everything is computed
in fp32, or in float64 where the states are, a few rows at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loopcoder.diagnose.measures.precision import precise

ELEMENTS = 2**23
"""How many elements of a state are converted at a time: 32 MiB in fp32."""


@torch.no_grad()
def step_size(now: Tensor, before: Tensor) -> Tensor:
    """Return ||now - before||_2 for each token.

    With h(r) and h(r-1) it is the step size of loop r, with h(r) and f(h(r)) = h(r+1) its
    fixed-point gap (LoopCoder-v2, arXiv 2606.18023).

    Args:
        now, before: states. [..., D]

    Returns:
        [...]
    """
    chunks = zip(_chunks(now), _chunks(before), strict=True)
    norms = [torch.linalg.vector_norm(precise(x) - precise(y), dim=-1) for x, y in chunks]
    return torch.cat(norms).view(now.shape[:-1])


@torch.no_grad()
def alignment(now: Tensor, before: Tensor, before_that: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosine between the last two steps of each token.

    With h(r), h(r-1) and h(r-2) it is the update alignment of loop r >= 2; below zero the states
    oscillate.

    Args:
        now, before, before_that: states. [..., D]

    Returns:
        cosine [...], and where it is defined [...]: neither step is zero. NaN elsewhere.
    """
    cosines, moved = [], []
    for x, y, z in zip(*map(_chunks, (now, before, before_that)), strict=True):
        middle = precise(y)
        last, first = precise(x) - middle, middle - precise(z)
        norms = torch.linalg.vector_norm(last, dim=-1), torch.linalg.vector_norm(first, dim=-1)
        cosines.append((last * first).sum(-1) / norms[0] / norms[1])
        moved.append((norms[0] != 0) & (norms[1] != 0))
    shape = now.shape[:-1]
    return torch.cat(cosines).view(shape), torch.cat(moved).view(shape)


@torch.no_grad()
def offset_cost(hidden: Tensor, first_token: Tensor) -> tuple[Tensor, Tensor]:
    """Return ||h_i - h_(i-1)||_2 of each token, the distance to the one before it.

    On the output of loop r-1 it is Omega(r), what the shift of loop r has to bridge.

    Args:
        hidden: states of one loop. [S, B, D]
        first_token: whether a token begins a document (`Documents.first_token`). [S, B]

    Returns:
        distance [S, B], and where it is defined [S, B]: at all tokens but the first of a document.
        NaN elsewhere.
    """
    distance = step_size(hidden[1:], hidden[:-1])
    distance = torch.cat([distance.new_full((1, hidden.shape[1]), torch.nan), distance])
    defined = ~first_token
    defined[0] = False
    return distance.where(defined, torch.nan), defined


def _chunks(states: Tensor) -> tuple[Tensor, ...]:
    """Split [..., D] into parts of some rows, [rows, D]."""
    rows = states.reshape(-1, states.shape[-1])
    return rows.split(max(1, ELEMENTS // states.shape[-1]))
