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
    init_from: str | None = None
    """Folder of another sweep: each point starts (checkpoint.init_from) from the run there that has
    its model, and of several its seed."""
    before: str | None = None
    """A preset of the group experiment, a sweep that is run first, in the folder `before`, and
    whose runs the points start from. What is given of model, variant, precision, parallel,
    hardware, logging, seed and data.build.cache_dir counts for both."""
    tasks: str | None = None
    """What the trained points are put to when all are done, as by `loopcoder evaluate tasks=...`:
    tasks of lm-eval, human_eval, chat."""
    minimise: str = "val/loss"
    """Of a search: the field of metrics.jsonl whose last value is to be low."""
