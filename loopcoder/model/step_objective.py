"""How many loops a step runs, and which of them it trains on; without torch.

The number is a pure function of the seed and the step, so that all ranks, and a run that resumes or
goes back, draw the same.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import accumulate
from statistics import NormalDist

from loopcoder.config.objective import ObjectiveConfig
from loopcoder.config.schema import Config

_NODES = 2000
"""Of the sum that stands for the integral over the Poisson's rate."""


@dataclass(frozen=True)
class StepObjective:
    """Which loops a step runs, and which of their losses count."""

    num_loops: int
    """Loops that the step runs."""
    weights: tuple[float, ...] | None = None
    """Of their losses, adding up to 1; None: the last loop's loss alone, or `exit_entropy`."""
    exit_entropy: float | None = None
    """beta of the learned exit distribution; None: there is none."""

    @property
    def sums_loops(self) -> bool:
        """The losses of several loops count."""
        return self.weights is not None or self.exit_entropy is not None

    @property
    def read_loops(self) -> tuple[int, ...]:
        """Loops whose output the head reads; the last one always, since its loss is logged."""
        loops = range(self.num_loops)
        if self.exit_entropy is not None:
            return tuple(loops)
        weights = self.weights or ()
        return *(r for r in loops[:-1] if weights and weights[r]), loops[-1]


def step_objective(config: ObjectiveConfig, num_loops: int, loops: int) -> StepObjective:
    """Return what a step of `loops` loops, of the model's `num_loops`, trains on."""
    entropy = config.exit_entropy if config.has_gate(num_loops) else None
    if config.loop_weights is None:
        return StepObjective(loops, None, entropy)
    run = config.loop_weights[:loops]
    return StepObjective(loops, tuple(weight / sum(run) for weight in run), entropy)


def loops_of_step(config: Config, step: int) -> int:
    """Return the loops that step `step` (from 1) runs, model.num_loops at most."""
    objective, most = config.objective, config.model.num_loops
    if not objective.draws_loops:
        return most
    digest = hashlib.sha256(f"{config.seed}:loops of step {step}".encode()).digest()
    first, second = (_uniform(digest[i : i + 8]) for i in (0, 8))
    if objective.loop_count == "uniform":
        return objective.min_loops + int(first * (most - objective.min_loops + 1))
    below = accumulate(_poisson(_rate(objective, most, first), most - 1))
    drawn = next((n for n, reached in enumerate(below, 1) if second < reached), most)
    return max(objective.min_loops, drawn)


def shares_of_counts(objective: ObjectiveConfig, num_loops: int) -> dict[int, float]:
    """Return how often a step runs each number of loops; the shares add up to 1."""
    if not objective.draws_loops:
        return {num_loops: 1.0}
    counts = range(objective.min_loops, num_loops + 1)
    if objective.loop_count == "uniform":
        return dict.fromkeys(counts, 1 / len(counts))
    shares = dict.fromkeys(counts, 0.0)
    for node in range(_NODES):
        rate = _rate(objective, num_loops, (node + 0.5) / _NODES)
        rest = 1.0
        for n, share in enumerate(_poisson(rate, num_loops - 1), 1):
            shares[max(n, objective.min_loops)] += share / _NODES
            rest -= share
        shares[num_loops] += rest / _NODES
    return shares


def _rate(objective: ObjectiveConfig, most: int, quantile: float) -> float:
    """Return a quantile of the Poisson's rate, whose logarithm is normal (arXiv 2502.05171)."""
    sigma = objective.loop_sigma
    mean = most - 1 if objective.mean_loops is None else objective.mean_loops
    return math.exp(math.log(mean) - sigma**2 / 2 + sigma * NormalDist().inv_cdf(quantile))


def _poisson(rate: float, count: int) -> list[float]:
    """Return the probabilities of 0 to count-1."""
    return [math.exp(n * math.log(rate) - rate - math.lgamma(n + 1)) for n in range(count)]


def _uniform(digest: bytes) -> float:
    """Turn eight random bytes into a number inside of (0, 1)."""
    return ((int.from_bytes(digest, "big") >> 12) + 0.5) / 2**52
