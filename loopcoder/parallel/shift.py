"""What the one-token shift needs of another rank where the sequence is split over them."""

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


def position_before(group: dist.ProcessGroup) -> Callable[[Tensor], Tensor]:
    """Return a function for a sequence that is split over the ranks of `group`, in their order.

    It maps this rank's part [S / ranks, B, D] to the position before it [1, B, D], which the rank
    before has; zeros on the first. Every rank of the group must call it.
    """

    def before(hidden: Tensor) -> Tensor:
        return _FromLeftNeighbour.apply(hidden[-1:], group)

    return before
