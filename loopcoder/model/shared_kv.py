"""What loop 0 leaves for later loops: the keys and values of every layer, and the embedding.

Both kinds below are explicit arguments, never state of a layer, so that microbatches cannot mix.
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
    """For all loops in one autograd graph: gradients reach loop 0 through the tensors
    themselves."""

    def __init__(self) -> None:
        self._by_key: dict[Any, Any] = {}

    def keep(self, key: Any, hidden: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        """Store tensors of loop 0; return `hidden` to go on with."""
        self._by_key[key] = tensors
        return hidden

    def of(self, key: Any) -> Any:
        """Return the tensors that loop 0 kept, for use in a later loop."""
        return self._by_key[key]


class DetachedSharedKV(SharedKV):
    """For loops that are chunks of a pipeline, each with an autograd graph of its own.

    Later loops use the values, and their gradients are collected here in fp32. The backward pass
    of loop 0's chunk, which comes after those of all later loops of the same microbatch, takes
    them from here. The sum is the exact gradient.
    """

    def keep(self, key: Any, hidden: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        """Store tensors of loop 0; `hidden`, which is returned, carries their gradients back."""
        slot = self._by_key[key] = _Slot(tensors)
        return _HandBack.apply(slot, hidden, *tensors)

    def of(self, key: Any) -> Any:
        """Return the values that loop 0 kept, for use in a later loop."""
        return _Collect.apply(self._by_key[key], torch.zeros((), requires_grad=True))


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


class _HandBack(torch.autograd.Function):
    """Identity of `hidden`; its backward pass also hands the kept tensors what was collected for
    them."""

    @staticmethod
    def forward(ctx: Any, slot: _Slot, hidden: Tensor, *_: Tensor) -> Tensor:
        ctx.slot = slot
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, grad, *ctx.slot.take()


class _Collect(torch.autograd.Function):
    """Values of a slot; its backward pass adds to the slot and goes no further."""

    @staticmethod
    def forward(ctx: Any, slot: _Slot, anchor: Tensor) -> tuple[Tensor, ...]:
        ctx.slot = slot
        return tuple(t.view_as(t) for t in slot.tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        ctx.slot.add(grads)
        return None, None
