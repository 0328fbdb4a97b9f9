"""What is due around a step: an evaluation, a line of metrics, a checkpoint, a comparison."""

from __future__ import annotations

from loopcoder.config.schema import Config
from loopcoder.optim.schedule import branching_step


def evaluates_after(config: Config, step: int) -> bool:
    """Say whether there is an evaluation after a step."""
    is_last = step == config.train.max_steps
    return _due(step, config.eval.interval) or (is_last and config.eval.at_end)


def logs_after(config: Config, step: int) -> bool:
    """Say whether there is a line of metrics.jsonl of a step."""
    is_last = step == config.train.max_steps
    return is_last or _due(step, config.logging.interval) or evaluates_after(config, step)


def diagnoses_after(config: Config, step: int) -> bool:
    """Say whether what the loops do is measured in a step."""
    interval = config.logging.diagnostics_interval
    return interval > 0 and step % interval == 0 and logs_after(config, step)


def saves_after(config: Config, step: int, warmup: int) -> bool:
    """Say whether there is a checkpoint of a step: at intervals, where a wsd run begins to decay,
    and at the end.

    Args:
        warmup: Steps of warm-up that the run has.
    """
    saved, last = config.checkpoint, config.train.max_steps
    if step == last and saved.save_at_end:
        return True
    if saved.interval is None:
        return False
    return step == branching_step(config.optim, last, warmup) or _due(step, saved.interval)


def compares_after(config: Config, step: int) -> bool:
    """Say whether replicas are compared after a step; they are before each checkpoint as well."""
    return _due(step, config.faults.compare_interval)


def replays_before(config: Config, step: int) -> bool:
    """Say whether the gradients of a step are computed twice and compared before it."""
    return _due(step, config.faults.replay_interval)


def _due(step: int, interval: int | None) -> bool:
    return interval is not None and step % interval == 0
