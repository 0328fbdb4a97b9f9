"""Learning rate of a step: a pure function of the config."""

from __future__ import annotations

import math

from loopcoder.config.schema import OptimConfig


def warmup_steps(optim: OptimConfig, max_steps: int) -> int:
    """Return the length of the linear warm-up in steps."""
    schedule = optim.schedule
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return _share(schedule.warmup_fraction, max_steps)


def _share(fraction: float, max_steps: int) -> int:
    """Return a fraction of the steps, rounded up; 0.07 of 100 is 7, which floats miss."""
    return math.ceil(round(fraction * max_steps, 6))


def learning_rate(optim: OptimConfig, step: int, max_steps: int) -> float:
    """Return the learning rate of the update that ends step `step` (1 is the first)."""
    warmup = warmup_steps(optim, max_steps)
    if step <= warmup:
        return optim.lr * (step / warmup)
    kind = optim.schedule.kind
    if kind == "constant":
        return optim.lr
    if kind == "cosine":
        begin, shape = warmup, "cosine"
    else:
        begin = max(warmup, max_steps - _share(optim.schedule.decay_fraction, max_steps))
        shape = optim.schedule.decay_shape
    if step <= begin:
        return optim.lr
    done = min(1.0, (step - begin) / (max_steps - begin))
    remaining = {
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "linear": 1 - done,
        "1-sqrt": 1 - math.sqrt(done),
    }[shape]
    return optim.min_lr + (optim.lr - optim.min_lr) * remaining
