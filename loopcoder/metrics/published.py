"""Published figures that a sweep of loops is compared with: what is known of looped transformers.

All of them are for loops without a shift and with K/V of their own, and with layers before and
behind the loop that run once; no such figure is published for Parallel Loop Transformers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A figure with its range and where it stands."""

    low: float
    high: float
    source: str
    value: float | None = None
    """The figure itself; None where a range is all there is."""


EQUAL_WEIGHTS = {
    2: Published(
        -0.06,
        -0.03,
        "calculated for 20M to 100M parameters from the law of arXiv 2604.21106; "
        "arXiv 2604.12946 measures -0.120 to -0.045 for 8 loops at 140M to 1.3B parameters",
    )
}
"""By R: validation loss less that of R = 1 with the same weights, after the same tokens; nats."""

EQUAL_FLOPS = {2: Published(0.03, 0.06, "arXiv 2604.21106; its R = 2 keeps 61% of the weights")}
"""By R: validation loss less that of a dense model with R times the layers; nats."""

PHI = Published(0.41, 0.53, "arXiv 2604.21106, R = 1, 2, 4, 8", value=0.46)
"""phi and its 95% interval."""
