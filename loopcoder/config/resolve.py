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
    """Return how many processes a plain `loopcoder train` runs on.

    One a GPU, as far as the global batch can be divided among them: the tiny preset runs on one GPU
    of eight. Where nothing fits, all GPUs, and the check says what does not.
    """
    p, t = config.parallel, config.train
    one_model = p.tp * p.pp * p.cp
    if p.nproc_per_node or not backends.has_gpu:
        return p.nproc_per_node or one_model
    batch = t.batch_ramp.start if t.batch_ramp else t.global_batch_size
    for copies in range(backends.gpu_count // one_model, 0, -1):
        if batch % (t.micro_batch_size * copies) == 0:
            return copies * one_model
    return backends.gpu_count
