"""The section `diagnose` of a command line: how much is measured of a checkpoint."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from loopcoder.config.types import STRICT, Name, NonNegativeInt, PositiveInt


@dataclass(frozen=True, config=STRICT)
class DiagnoseConfig:
    """What `loopcoder diagnose` measures."""

    sequences: PositiveInt = 64
    """Held-out sequences, of the length of the data stage; each domain gives as many."""
    loops: PositiveInt | None = None
    """Loops that are run and measured, fewer or more than those of training; null: as many."""
    rank_sequences: PositiveInt = 64
    """Of these, drawn at random: for the effective rank and the diversity of heads."""
    rank_tokens: PositiveInt = 1024
    """Tokens of each of them, drawn at random, whose states are the matrix of an effective rank."""
    queries: PositiveInt = 64
    """Tokens of each of them, drawn at random, at which attention heads are compared."""
    seed: NonNegativeInt = 0
    """Of what is drawn."""
    name: Name | None = None
    """What reports call the checkpoint, and its file; null: the name of its run and its step."""
