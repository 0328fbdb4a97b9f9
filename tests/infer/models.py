"""Decoders with random weights, and what exact arithmetic makes of the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loopcoder.config.schema import ModelConfig
from loopcoder.hf.mapping import from_released, released_shapes
from loopcoder.infer.decoder import Decoder
from loopcoder.infer.weights import build_weights
from tests import reference
from tests.configs import small_model
from tests.hf.folders import Twice

VOCAB, ROWS = 90, 96
"""Tokens, and rows of embedding and head with those that pad."""


@dataclass(frozen=True)
class Drawn:
    """A model of random weights: gates far from their start, so that nothing hides."""

    model: ModelConfig
    weights: dict[str, Tensor]
    """Under the released names, in float64, of values that fp32 has exactly."""

    def decoder(self, num_places: int, max_length: int) -> Decoder:
        """Make a decoder in fp32 on the CPU."""
        ours = from_released(self.weights, self.model)
        cpu = torch.device("cpu")
        weights = build_weights(ours.__getitem__, self.model, VOCAB, cpu, torch.float32)
        return Decoder(weights, self.model, VOCAB, num_places=num_places, max_length=max_length)

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Return the exact logits after every token. [S, VOCAB] in float64"""
        return self.compute(self.weights, [ids])["0"]

    def compute(
        self, weights: dict[str, Tensor], sequences: Sequence[Sequence[int]]
    ) -> dict[str, Tensor]:
        """Return the logits of each sequence in the weights' precision, by its index."""
        out, arguments = {}, reference.arguments(self.model)
        for i, ids in enumerate(sequences):
            tokens = torch.tensor(ids)
            found = reference.forward(weights, tokens, torch.zeros_like(tokens), **arguments)
            out[str(i)] = found[-1][:, :VOCAB]
        return out

    def rounding(self, sequences: Sequence[Sequence[int]], seed: int) -> Twice:
        """Return how far from exact logits of some sequences may be."""
        return Twice(self.weights, lambda w: self.compute(w, sequences), seed, torch.float32)


def draw(seed: int, **changes: Any) -> Drawn:
    """Draw a small model."""
    model = small_model(**changes)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in released_shapes(model, ROWS).items():
        x = torch.randn(shape, generator=generator)
        x = 1 + 0.2 * x if "norm" in name else x if len(shape) == 1 else x / shape[-1] ** 0.5
        weights[name] = x.double()
    return Drawn(model, weights)


def random_ids(rng: Any, length: int) -> list[int]:
    return [rng.randrange(VOCAB) for _ in range(length)]
