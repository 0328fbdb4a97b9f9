"""What the runs of a sweep took: hours of all their devices."""

from __future__ import annotations

from collections.abc import Sequence

from loopcoder.metrics.writer import Record


def device_hours(records: Sequence[Record]) -> dict[float, float]:
    """Return how many hours all devices of a run have trained, by the tokens trained until then.

    Steps count, evaluations and saves do not. A run on processors has a device for each process.

    Args:
        records: One for each step that was logged.
    """
    found: dict[float, float] = {}
    timed = [r for r in records if "step_time_s" in r and "tokens" in r]
    hours, before = 0.0, timed[0]["step"] - _first_steps(timed) if timed else 0
    for record in timed:
        speed, per_rank = record.get("tokens_per_s", 1.0), record.get("tokens_per_s_per_rank")
        devices = speed / per_rank if per_rank else 1.0
        hours += (record["step"] - before) * record["step_time_s"] * devices / 3600
        before = record["step"]
        found[record["tokens"]] = hours
    return found


def _first_steps(timed: Sequence[Record]) -> float:
    """Return how many steps the first record covers: all before it, but of a run that goes on from
    another's position as many as the second."""
    first = float(timed[0]["step"])
    return min(first, timed[1]["step"] - first) if len(timed) > 1 else first
