"""What an update by Adam needs to know of its step, besides gradients and moments."""

from __future__ import annotations

import math


def step_numbers(
    step: int, lr: float, betas: tuple[float, float], weight_decay: float
) -> tuple[float, float, float]:
    """Return the share of a weight that decays, the rate with the first moment's bias corrected,
    and the factor that corrects the root of the second moment.

    Args:
        step: Updates done, this one included.
    """
    return (
        lr * weight_decay,
        lr / (1.0 - betas[0] ** step),
        1.0 / math.sqrt(1.0 - betas[1] ** step),
    )
