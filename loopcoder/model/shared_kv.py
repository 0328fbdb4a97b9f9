"""What loop 0 leaves for later loops: the keys and values of every layer, and the embedding.

Both kinds below are explicit arguments, never state of a layer, so that microbatches cannot mix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

KV = tuple[Tensor, Tensor]
"""Keys and values after RoPE, each [S, B, kv_heads of this rank, head_dim]."""


class SharedKV:
    """For all loops in one autograd graph: gradients reach loop 0 through the tensors
    themselves."""

    def __init__(self) -> None:
        self._by_layer: dict[int, KV] = {}

    def keep(self, layer: int, hidden: Tensor, kv: KV) -> Tensor:
        """Store loop 0's K/V of a layer (index within the stage); return `hidden` to go on with."""
        self._by_layer[layer] = kv
        return hidden

    def of(self, layer: int) -> KV:
        """Return loop 0's K/V of a layer."""
        return self._by_layer[layer]


class KeptTensors:
    """For loops that are chunks of a pipeline, each with an autograd graph of its own.

    Later loops use the values, and their gradients are collected here in fp32. The backward pass
    of loop 0's chunk, which comes after those of all later loops of the same microbatch, takes
    them from here. The sum is the exact gradient.
    """

    def __init__(self) -> None:
        self._slots: dict[Any, _Slot] = {}

    def keep(self, key: Any, hidden: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        """Store tensors of loop 0; `hidden`, which is returned, carries their gradients back."""
        slot = self._slots[key] = _Slot(tensors)
        return _Keep.apply(slot, hidden, *tensors)

    def of(self, key: Any) -> Any:
        """Return the tensors that loop 0 kept, for use in a later loop."""
        slot = self._slots[key]
        return _Read.apply(slot, torch.zeros((), requires_grad=True))


class _Slot:
    """Tensors of loop 0 and the gradients that later loops have sent so far."""

    def __init__(self, tensors: tuple[Tensor, ...]):
        self.tensors = tuple(t.detach() for t in tensors)
        self.grads: list[Tensor] | None = None

    def add(self, grads: tuple[Tensor, ...]) -> None:
        if self.grads is None:
            self.grads = [g.float() for g in grads]
        else:
            self.grads = [total.add_(g) for total, g in zip(self.grads, grads, strict=True)]

    def take(self) -> list[Tensor | None]:
        grads, self.grads = self.grads, None
        if grads is None:
            return [None for _ in self.tensors]
        return [g.to(t.dtype) for g, t in zip(grads, self.tensors, strict=True)]


class _Keep(torch.autograd.Function):
    """Identity of `hidden`; its backward pass also hands the kept tensors what was collected for
    them."""

    @staticmethod
    def forward(ctx: Any, slot: _Slot, hidden: Tensor, *_: Tensor) -> Tensor:
        ctx.slot = slot
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, grad, *ctx.slot.take()


class _Read(torch.autograd.Function):
    """Values of a slot; its backward pass adds to the slot and goes no further."""

    @staticmethod
    def forward(ctx: Any, slot: _Slot, anchor: Tensor) -> tuple[Tensor, ...]:
        ctx.slot = slot
        return tuple(t.view_as(t) for t in slot.tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        ctx.slot.add(grads)
        return None, None
