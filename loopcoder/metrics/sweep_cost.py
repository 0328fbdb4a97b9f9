"""What the runs of a sweep took: FLOPs, and hours of all their devices."""

from __future__ import annotations

from collections.abc import Sequence

from loopcoder.config.schema import Config
from loopcoder.metrics.writer import Record
from loopcoder.model.flops import train_flops_per_token
from loopcoder.plan.memory import planned_vocabulary


def flops_per_token(config: Config) -> float:
    """Return the training FLOPs of a token, attention counted under its causal mask."""
    length = config.stages[0].seq_length
    return train_flops_per_token(config.model, planned_vocabulary(config), length)[0]


def device_hours(records: Sequence[Record]) -> dict[float, float]:
    """Return how many hours all devices of a run have trained, by the tokens trained until then.

    Steps count, evaluations and saves do not. A run on processors has a device for each process.

    Args:
        records: One for each step that was logged.
    """
    found: dict[float, float] = {}
    hours, before = 0.0, 0
    for record in records:
        if "step_time_s" not in record:
            continue
        speed, per_rank = record.get("tokens_per_s", 1.0), record.get("tokens_per_s_per_rank")
        devices = speed / per_rank if per_rank else 1.0
        hours += (record["step"] - before) * record["step_time_s"] * devices / 3600
        before = int(record["step"])
        found[record["tokens"]] = hours
    return found
