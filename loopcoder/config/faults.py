"""The section `faults`: what a run does about bad numbers, silent errors and slow processes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from loopcoder.config.types import STRICT, NonNegativeInt, PositiveFloat, PositiveInt


@dataclass(frozen=True, config=STRICT)
class FaultsConfig:
    """When a run goes back to its newest checkpoint from before bad steps, and leaves out what it
    was trained on since."""

    bad_steps: PositiveInt = 3
    """Steps in a row whose loss or gradient is not finite before the run goes back; none of
    them changes weights or moments."""
    spike_nats: PositiveFloat | None = None
    """How far the loss is above its mean before the run goes back, in nats per token; null: a
    loss that is finite is none of its reasons. 1 is far beyond the noise of a batch of a million
    tokens."""
    spike_steps: PositiveInt = 10
    """Steps in a row that the loss is as far above its mean."""
    spike_window: PositiveInt = 100
    """Steps before, over which the mean is taken: of this process and this data stage, so that the
    rule begins after as many."""
    rewinds: NonNegativeInt = 3
    """Times that a run goes back in all; then, and where no checkpoint is older than the first bad
    step, it ends. 0: it never goes back."""
    compare_interval: PositiveInt | None = 100
    """Steps between comparisons of what data-parallel replicas must have in common, bit for bit;
    before each checkpoint as well. One replica alone has nothing to compare. null: never."""
    slow_rank: Annotated[float, Field(gt=1)] | None = 1.2
    """By how many times the compute time of a rank is above the median of its pipeline stage before
    it is named (event `slow_rank`); null: no rank is."""
    slow_window: PositiveInt = 20
    """Steps, 10 s of them at least, over which a rank's median is taken; it is named when it is
    slow in three such windows in a row."""
    replay_interval: PositiveInt | None = None
    """Steps between those whose gradients every rank computes three times, twice to compare them
    bit for bit; null: none. On a GPU it needs train.deterministic."""
