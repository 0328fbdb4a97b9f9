"""What loop 0 leaves for later loops: the keys and values of every layer."""

from __future__ import annotations

from torch import Tensor

KV = tuple[Tensor, Tensor]
"""Keys and values after RoPE, each [S, B, kv_heads of this rank, head_dim]."""


class SharedKV:
    """The K/V of loop 0 for one microbatch, by layer.

    With all loops in one autograd graph this is a dictionary: gradients reach loop 0 through the
    tensors themselves. It is an explicit argument, never state of a layer, so that microbatches
    cannot mix.
    """

    def __init__(self) -> None:
        self._by_layer: dict[int, KV] = {}

    def keep(self, layer: int, kv: KV) -> None:
        """Store loop 0's K/V of a layer (index within this pipeline stage)."""
        self._by_layer[layer] = kv

    def of(self, layer: int) -> KV:
        """Return loop 0's K/V of a layer."""
        return self._by_layer[layer]
