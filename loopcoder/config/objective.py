"""The section `objective`: which loops a step runs, and what of their losses it trains on."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from loopcoder.config.types import STRICT, NonNegativeFloat, PositiveFloat, PositiveInt


@dataclass(frozen=True, config=STRICT)
class ObjectiveConfig:
    """What training minimises; without any of it the loss of the last of model.num_loops loops.

    Validation runs all loops and reads the last one, whatever is trained.
    """

    loop_weights: list[NonNegativeFloat] | None = None
    """One weight per loop: the loss is the mean of the loops' losses by these weights. null: the
    last loop alone. Each loop but the last whose weight is not 0 is one more run of the head."""
    exit: bool = False
    """Learn for each token after which loop to read it: a gate on every loop's output, whose
    distribution over the loops weighs their losses (arXiv 2510.25741)."""
    exit_entropy: NonNegativeFloat = 0.1
    """With `exit`: factor of that distribution's entropy, in nats, which is subtracted from the
    loss. Without it the distribution falls onto one loop."""
    loop_count: Literal["fixed", "uniform", "poisson"] = "fixed"
    """How many loops a step runs, model.num_loops at most: all of them; any number from
    `min_loops` on, equally often; 1 + Poisson(exp(normal)), clipped to the same range (log-normal
    Poisson, arXiv 2502.05171)."""
    min_loops: PositiveInt = 1
    """Fewest loops that are drawn."""
    mean_loops: PositiveFloat | None = None
    """With `poisson`: mean of the Poisson's rate, 1 below the mean number of loops before it is
    clipped; null: model.num_loops - 1."""
    loop_sigma: NonNegativeFloat = 0.5
    """With `poisson`: standard deviation of the logarithm of the rate; 0: a plain Poisson."""

    @property
    def draws_loops(self) -> bool:
        """Steps run different numbers of loops."""
        return self.loop_count != "fixed"

    def has_gate(self, num_loops: int) -> bool:
        """Whether a model has the gate of `exit`; as with the gates of layers, one loop has
        none."""
        return self.exit and num_loops > 1
