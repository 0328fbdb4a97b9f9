"""What it would be to let each token leave the loops early, by simple rules.

It is a diagnosis and not a way to decode: a Parallel Loop Transformer decodes all loops as rows of
one batch, so a token that leaves early saves next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExitValues:
    """One value per token, [T] each."""

    loops: Tensor
    """Loops that it takes, counted from 1; int64."""
    loss: Tensor
    """Its loss where it leaves, nats."""
    agrees: Tensor
    """Whether its most likely next token is already that of the last loop; bool."""


def exit_loops(confidence: Tensor, threshold: float) -> Tensor:
    """Return the first loop whose most likely token has probability `threshold` or more.

    Args:
        confidence: probability of the most likely token, one row per loop. [R, T]

    Returns:
        loops, counted from 1; the last one where none is as sure. [T] int64
    """
    return _first(confidence >= threshold)


def exit_loops_kl(shift: Tensor, threshold: float) -> Tensor:
    """Return the first loop that changes the prediction by `threshold` or less.

    Args:
        shift: KL(p(r) || p(r-1)) in nats, one row per loop; that of loop 1 is NaN. [R, T]

    Returns:
        loops, counted from 1: the second at the earliest, the last one where all change it more.
        [T] int64
    """
    return _first(shift <= threshold)


def exit_values(loops: Tensor, losses: Tensor, predictions: Tensor) -> ExitValues:
    """Return what leaving at `loops` gives.

    Args:
        loops: counted from 1. [T]
        losses, predictions: one row per loop. [R, T]
    """
    row = loops[None] - 1
    loss, prediction = losses.gather(0, row)[0], predictions.gather(0, row)[0]
    return ExitValues(loops, loss, prediction == predictions[-1])


def _first(holds: Tensor) -> Tensor:
    holds = holds.clone()
    holds[-1] = True
    return holds.to(torch.uint8).argmax(0) + 1
