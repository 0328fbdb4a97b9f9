"""What decoding keeps of the tokens before: keys, values, and what each loop gave last.

Loop 0's keys and values of all tokens, which every loop reads; of each later loop those of its
window, in a ring (position modulo window + 1); and its input of the next token, the `carry`. So
more loops cost a constant per sequence. With `kv_sharing=own` every loop keeps all of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loopcoder.config.schema import ModelConfig
from loopcoder.infer.split import WHOLE, Split

KV = tuple[Tensor, Tensor]


def cache_bytes(
    model: ModelConfig,
    num_places: int,
    max_length: int,
    dtype: torch.dtype,
    split: Split = WHOLE,
) -> int:
    """Return the bytes of a rank's cache: those of the tokens, the rings, the carry, the lengths.

    Args:
        num_places: Sequences at a time.
        max_length: Of each, in tokens.
    """
    kv = 2 * model.num_layers * (model.num_kv_heads // split.size) * model.head_dim
    per_place = _loops_kept(model) * max_length * kv
    per_place += _rings(model) * (model.window + 1) * kv
    per_place += _carried(model) * model.hidden_size
    return num_places * (per_place * dtype.itemsize + torch.int64.itemsize)


class Cache:
    """Places for sequences, each with its own length."""

    def __init__(
        self,
        model: ModelConfig,
        num_places: int,
        max_length: int,
        device: torch.device,
        dtype: torch.dtype,
        split: Split = WHOLE,
    ):
        self.model, self.num_places, self.max_length = model, num_places, max_length
        layers, heads, width = model.num_layers, model.num_kv_heads // split.size, model.head_dim
        full = (layers, _loops_kept(model), num_places, heads, max_length, width)
        ring = (layers, num_places, _rings(model), heads, model.window + 1, width)

        # zeros: what is masked out is still multiplied by 0
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, device=device, dtype=dtype)

        self.full: KV = zeros(*full), zeros(*full)
        """After RoPE. [L, loops, places, kv_heads, max_length, head_dim]"""
        self.ring: KV = zeros(*ring), zeros(*ring)
        """Of later loops with gates. [L, places, R-1, kv_heads, window + 1, head_dim]"""
        self.carry = zeros(num_places, _carried(model), model.hidden_size)
        """What loops 0..R-2 gave for the last token. [places, R-1, D]"""
        self.lengths = torch.zeros(num_places, device=device, dtype=torch.int64)
        """Tokens in each place. [places]"""

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (*self.full, *self.ring, self.carry, self.lengths))

    def kept(self, layer: int, loop: int) -> KV:
        """Return the keys and values of all tokens that a loop reads: loop 0's, or with
        `kv_sharing=own` its own. [places, kv_heads, max_length, head_dim] each"""
        index = loop if self.model.kv_sharing == "own" else 0
        return self.full[0][layer, index], self.full[1][layer, index]

    def rings(self, layer: int, loops: range) -> KV:
        """Return the rings of some later loops. [places, loops, kv_heads, window + 1, head_dim]"""
        own = slice(loops.start - 1, loops.stop - 1)
        return self.ring[0][layer][:, own], self.ring[1][layer][:, own]

    def append(
        self, layer: int, loops: range, places: Tensor, positions: Tensor, k: Tensor, v: Tensor
    ) -> None:
        """Keep what some loops have of one more token of each place.

        Args:
            places, positions: [B]
            k, v: [B, loops, kv_heads, head_dim]
        """
        for row, loop in enumerate(loops):
            if self._keeps(loop):
                for kept, new in zip(self.kept(layer, loop), (k, v), strict=True):
                    kept[places, :, positions] = new[:, row]
        later = later_loops(self.model, loops)
        if later:
            slots = positions % (self.model.window + 1)
            for ring, new in zip(self.rings(layer, later), (k, v), strict=True):
                ring[places, :, :, slots] = new[:, -len(later) :]

    def fill(self, layer: int, loop: int, place: int, k: Tensor, v: Tensor) -> None:
        """Keep what a loop has of a prompt. k, v: [S, kv_heads, head_dim]"""
        length, size = len(k), self.model.window + 1
        if self._keeps(loop):
            for kept, new in zip(self.kept(layer, loop), (k, v), strict=True):
                kept[place, :, :length] = new.transpose(0, 1)
        for later in later_loops(self.model, range(loop, loop + 1)):
            slots = torch.arange(max(0, length - size), length, device=k.device) % size
            for ring, new in zip(self.ring, (k, v), strict=True):
                ring[layer, place, later - 1][:, slots] = new[-size:].transpose(0, 1)

    def start(self, places: Sequence[int], lengths: Sequence[int]) -> None:
        """Note how long the prompts are that fill some places."""
        device = self.lengths.device
        self.lengths[torch.tensor(places, device=device)] = torch.tensor(lengths, device=device)

    def _keeps(self, loop: int) -> bool:
        return loop == 0 or self.model.kv_sharing == "own"


def later_loops(model: ModelConfig, loops: range) -> range:
    """Return those of some loops that mix two attentions by a gate."""
    return range(max(1, loops.start), loops.stop) if model.has_gates else range(0)


def _loops_kept(model: ModelConfig) -> int:
    return model.num_loops if model.kv_sharing == "own" else 1


def _rings(model: ModelConfig) -> int:
    return model.num_loops - 1 if model.has_gates else 0


def _carried(model: ModelConfig) -> int:
    return model.num_loops - 1 if model.shift else 0
