"""Learning rate of a step, and of a kind of matrix: pure functions of the config, and of the
warm-up that a run has had."""

from __future__ import annotations

import math

from loopcoder.config.schema import ModelConfig, OptimConfig


def warmup_steps(optim: OptimConfig, max_steps: int) -> int:
    """Return the length of the linear warm-up in steps."""
    schedule = optim.schedule
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return _share(schedule.warmup_fraction, max_steps)


def _share(fraction: float, max_steps: int) -> int:
    """Return a fraction of the steps, rounded up; 0.07 of 100 is 7, which floats miss."""
    return math.ceil(round(fraction * max_steps, 6))


def decay_begins(optim: OptimConfig, max_steps: int, warmup: int) -> int:
    """Return the last step at the peak rate."""
    schedule = optim.schedule
    if schedule.kind == "constant":
        return max_steps
    if schedule.kind == "cosine":
        return warmup
    return max(warmup, max_steps - decay_length(optim, max_steps))


def decay_length(optim: OptimConfig, max_steps: int) -> int:
    """Return the steps over which a wsd run decays, as they are asked for."""
    schedule = optim.schedule
    if schedule.decay_steps is not None:
        return schedule.decay_steps
    return _share(schedule.decay_fraction, max_steps)


def branching_step(optim: OptimConfig, max_steps: int, warmup: int | None) -> int | None:
    """Return the last step before a wsd run decays, which can be extended and branched from without
    a jump of the rate; None where nothing decays, or all of it does.

    Args:
        warmup: as in `learning_rate`.
    """
    had = warmup_steps(optim, max_steps) if warmup is None else warmup
    begins = decay_begins(optim, max_steps, had)
    return begins if optim.schedule.kind == "wsd" and had < begins < max_steps else None


def learning_rate(
    optim: OptimConfig, step: int, max_steps: int, warmup: int | None = None
) -> float:
    """Return the learning rate of the update that ends step `step` (1 is the first).

    Args:
        warmup: Steps of warm-up that a run has had that goes on; None: what the config makes of
            max_steps.
    """
    if warmup is None:
        warmup = warmup_steps(optim, max_steps)
    if step <= warmup:
        return optim.lr * (step / warmup)
    schedule = optim.schedule
    begin = decay_begins(optim, max_steps, warmup)
    shape = schedule.decay_shape if schedule.kind == "wsd" else "cosine"
    if step <= begin or schedule.kind == "constant":
        return optim.lr
    done = min(1.0, (step - begin) / (max_steps - begin))
    remaining = {
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "linear": 1 - done,
        "1-sqrt": 1 - math.sqrt(done),
    }[shape]
    return optim.min_lr + (optim.lr - optim.min_lr) * remaining


def vocabulary_share(optim: OptimConfig, step: int) -> float:
    """Return the share of their rate at which embedding and head learn in step `step` (1 is the
    first): it grows linearly over `optim.vocabulary_warmup_steps`."""
    return min(1.0, step / max(1, optim.vocabulary_warmup_steps))


def unreached_rate(optim: OptimConfig, max_steps: int) -> str | None:
    """Return what to say of a run that ends before embedding and head have warmed up."""
    steps = optim.vocabulary_warmup_steps
    if steps <= max_steps:
        return None
    share = vocabulary_share(optim, max_steps)
    return (
        f"warning: embedding and head end at {share:.2g} of their rate: "
        f"optim.vocabulary_warmup_steps={steps} is more than train.max_steps={max_steps}"
    )


def rate_scales(model: ModelConfig, optim: OptimConfig) -> dict[str, float]:
    """Return the rate of each kind of matrix as a multiple of `optim.lr`."""
    width = (optim.base_hidden_size or model.hidden_size) / model.hidden_size
    layers = model.num_layers * model.layer_multiple
    matrix = width * math.sqrt((optim.base_num_layers or layers) / layers)
    return {
        "embedding": optim.embedding_lr_scale,
        "matrix": matrix,
        "head": width * optim.head_lr_scale,
        "output projection": matrix * model.residual_scale,
    }
