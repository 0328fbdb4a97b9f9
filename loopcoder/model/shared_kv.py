"""What loop 0 leaves for later loops: the keys and values of every layer, and the embedding.

Both kinds below are explicit arguments, never state of a layer, so that microbatches cannot mix.
Both add the gradients of later loops up in fp32, so that loop 0 gets the same bits from either.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

KV = tuple[Tensor, Tensor]
"""Keys and values after RoPE, each [S, B, kv_heads of this rank, head_dim]."""

EMBEDDING = "embedding"
"""Key of E in a store; a layer's key is its index within the stage."""


class SharedKV:
    """For all loops in one autograd graph.

    Later loops use the values, and their gradients are collected in a slot: autograd would add them
    up in the type of the values. The backward pass of loop 0 takes the sum from there; an edge of
    the graph from each use to `keep` makes it wait for all of them.
    """

    def __init__(self) -> None:
        self._by_key: dict[Any, tuple[_Slot, Tensor]] = {}

    def keep(self, key: Any, hidden: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        """Store tensors of loop 0; `hidden`, which is returned, carries their gradients back."""
        slot = _Slot(tensors)
        hidden, edge = _HandBack.apply(slot, hidden, *tensors)
        # not in the slot, which the graph holds: a circle would never be freed
        self._by_key[key] = slot, edge
        return hidden

    def of(self, key: Any) -> Any:
        """Return the tensors that loop 0 kept, for use in a later loop."""
        slot, edge = self._by_key[key]
        return _Collect.apply(slot, self._reach(edge))

    def _reach(self, edge: Tensor) -> Tensor:
        """Return what a use is connected to."""
        return edge


class DetachedSharedKV(SharedKV):
    """For loops that are chunks of a pipeline, each with an autograd graph of its own.

    No edge leads from one graph to another: the backward pass of loop 0's chunk comes after those
    of all later loops of the same microbatch by the schedule.
    """

    def _reach(self, edge: Tensor) -> Tensor:
        return edge.detach().requires_grad_()


class _Slot:
    """Tensors of loop 0 and the gradients that later loops have sent so far."""

    def __init__(self, tensors: tuple[Tensor, ...]):
        self.tensors = tuple(t.detach() for t in tensors)
        self.grads: tuple[Tensor, ...] | None = None
        """As they came from one loop; the sum of more is in fp32, or wider."""

    def add(self, grads: tuple[Tensor, ...]) -> None:
        if self.grads is None:
            self.grads = grads
        else:
            pairs = zip(self.grads, grads, strict=True)
            self.grads = tuple(
                a.to(torch.promote_types(a.dtype, torch.float32)) + b for a, b in pairs
            )

    def take(self) -> list[Tensor | None]:
        grads, self.grads = self.grads, None
        if grads is None:
            return [None for _ in self.tensors]
        return [g.to(t.dtype) for g, t in zip(grads, self.tensors, strict=True)]


class _HandBack(torch.autograd.Function):
    """Identity of `hidden`; its backward pass also hands the kept tensors what was collected for
    them. The second output has no numbers: uses hang on it."""

    @staticmethod
    def forward(ctx: Any, slot: _Slot, hidden: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        ctx.slot = slot
        ctx.set_materialize_grads(False)
        return hidden.view_as(hidden), hidden.new_empty(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        return None, grad, *ctx.slot.take()


class _Collect(torch.autograd.Function):
    """Values of a slot; its backward pass adds to the slot and gives the edge nothing."""

    @staticmethod
    def forward(ctx: Any, slot: _Slot, edge: Tensor) -> tuple[Tensor, ...]:
        ctx.slot = slot
        return tuple(t.view_as(t) for t in slot.tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        ctx.slot.add(grads)
        return None, None
