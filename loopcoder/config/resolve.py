"""Settle what a config leaves to the machine, before it is hashed."""

from __future__ import annotations

from dataclasses import replace

from loopcoder.backends import Backends
from loopcoder.config.schema import Config


def resolve(config: Config, backends: Backends) -> Config:
    """Replace `precision=auto` and `model.layer_spec=auto` by what this machine can do."""
    precision, layer_spec = config.precision.name, config.model.layer_spec
    if precision == "auto":
        precision = "bf16" if backends.has_gpu else "fp32"
    if layer_spec == "auto":
        layer_spec = "te" if backends.has_te and backends.has_gpu else "torch"
    return replace(
        config,
        precision=replace(config.precision, name=precision),
        model=replace(config.model, layer_spec=layer_spec),
    )


def processes_to_start(config: Config, backends: Backends) -> int:
    """Return how many processes a plain `loopcoder train` runs on."""
    p = config.parallel
    return p.nproc_per_node or backends.gpu_count or p.tp * p.pp * p.cp
