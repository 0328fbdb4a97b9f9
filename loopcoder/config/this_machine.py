"""The config with which this machine runs weights that were trained on another one."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from loopcoder.backends import Backends
from loopcoder.config.faults import FaultsConfig
from loopcoder.config.resolve import resolve
from loopcoder.config.schema import Config, ParallelConfig
from loopcoder.errors import InputError


def for_this_machine(
    config: Config,
    backends: Backends,
    num_loops: int | None,
    precision: Literal["fp32", "bf16"] | None,
    parallel: ParallelConfig | None = None,
) -> Config:
    """Return the config with which this machine runs the weights of another.

    Args:
        parallel: Layout; None: one process.
    """
    trained = config.model.num_loops
    loops = trained if num_loops is None else num_loops
    if not isinstance(loops, int) or isinstance(loops, bool):
        why, fix = "it is a whole number", f"num_loops={trained}, as it was trained"
        raise InputError.of(f"num_loops={loops!r}", why, fix)
    if loops < 1:
        raise InputError.of(f"num_loops={loops}", "a model runs once at least", "num_loops=1")
    if precision not in (None, "fp32", "bf16"):
        why = "weights are run in 32 or 16 bits"
        raise InputError.of(f"precision={precision}", why, "precision=bf16")
    if precision is None:
        fp32 = config.precision.name == "fp32" or not backends.has_gpu
        precision = "fp32" if fp32 else "bf16"
    model = replace(config.model, num_loops=loops, layer_spec="auto", kernels="auto")
    return resolve(
        replace(
            config,
            model=model,
            parallel=parallel or ParallelConfig(),
            precision=replace(
                config.precision, name=precision, bf16_layers_at_start=0, bf16_layers_at_end=0
            ),
            # of a process that trains, not of a model
            train=replace(config.train, deterministic=False),
            faults=FaultsConfig(),
        ),
        backends,
    )
