"""FP8 copies of weights: made once a step, used by all its loops and microbatches.

Transformer Engine's own flag for this (`is_first_microbatch`) does not fit a looped model: it also
lets the first microbatch's weight gradient overwrite the accumulated one, and since the backward
pass runs the loops in reverse, loop 0 would wipe out what later loops had added. So no microbatch
is ever called the first; instead the copies are dropped when the weights have changed, and what is
missing is made anew.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn


def share_over_loops(ddp: Any, network: nn.Module) -> None:
    """Keep FP8 weights from one call of `ddp.set_is_first_microbatch` to the next.

    megatron-core's schedules make that call before the first microbatch of a step.
    """
    for module in network.modules():
        if hasattr(module, "is_first_microbatch"):
            module.is_first_microbatch = False  # type: ignore[assignment]
    ddp.set_is_first_microbatch = partial(forget, network)


def forget(network: nn.Module) -> None:
    """Drop all FP8 copies of weights."""
    for module in network.modules():
        getattr(module, "_fp8_workspaces", {}).clear()
