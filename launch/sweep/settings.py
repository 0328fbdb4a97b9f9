"""The section `sweep` of a command line: where its points run, and what they have alike."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from launch.sweep.points import Match
from loopcoder.config.types import STRICT, PositiveInt


@dataclass(frozen=True, config=STRICT)
class SweepConfig:
    """How a sweep runs."""

    at_once: PositiveInt | None = None
    """Points that run side by side; null: as many as the GPUs take, without GPUs one."""
    per_gpu: PositiveInt = 1
    """Points that share a GPU, for small models."""
    match: Match = "steps"
    """What the points have alike: `steps`, each its train.max_steps; `tokens` or `flops`, as many
    as the first point, and train.max_steps follows."""
    wait: bool = True
    """Of jobs of a scheduler: wait for them and compare them; false: submit them."""
    trials: PositiveInt | None = None
    """Search with Optuna: so many points in all, of `interval(1e-4,1e-2)`,
    `tag(log,interval(...))`, `range` and `choice` or commas; null: every combination."""
    minimise: str = "val/loss"
    """Of a search: the field of metrics.jsonl whose last value is to be low."""
