"""The one-token shift where the sequence is split over tensor-parallel ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _FromLeftNeighbour(torch.autograd.Function):
    """Give each rank the last position of the rank before it (zeros to the first); the backward
    goes the other way."""

    @staticmethod
    def forward(ctx: Any, last: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _neighbour(last, group, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _neighbour(grad, ctx.group, +1), None


def _neighbour(x: Tensor, group: dist.ProcessGroup, offset: int) -> Tensor:
    # One position a rank is so little that an all-gather costs what a send and receive would.
    size, source = group.size(), group.rank() + offset
    gathered = x.new_empty((size, *x.shape))
    dist.all_gather_into_tensor(
        gathered.view(size * x.shape[0], *x.shape[1:]), x.contiguous(), group=group
    )
    return gathered[source].clone() if 0 <= source < size else torch.zeros_like(x)


def shift_over(group: dist.ProcessGroup) -> Callable[[Tensor], Tensor]:
    """Return a shift by one position for a sequence that is split over the ranks of `group`, in
    their order.

    What it returns maps this rank's part [S / ranks, B, D] to the same part of the shifted
    sequence; every rank of the group must call it.
    """

    def shift(hidden: Tensor) -> Tensor:
        return torch.cat([_FromLeftNeighbour.apply(hidden[-1:], group), hidden[:-1]])

    return shift
