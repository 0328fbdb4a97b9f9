"""Settle what a config leaves to the machine, before it is hashed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from loopcoder.backends import NOT_BUILT, Backends
from loopcoder.config.corpora import settled
from loopcoder.config.schema import Config, ModelConfig

KERNEL_HEAD_DIMS, KERNEL_MAX_WINDOW = (64, 128), 256
KERNEL_GATE_WIDTH, KERNEL_GATE_HEADS = 64, 128
"""What kernels/ is compiled for."""


def resolve(config: Config, backends: Backends) -> Config:
    """Replace "auto" in `precision`, `model.layer_spec` and `model.kernels` by what this machine
    can do, `model.layer_multiple` by the layers that it comes to, and say which domains the corpora
    of `data.corpora` have.

    An extension that was built for another torch or from other sources is chosen all the same, so
    that the check says it: to leave it out silently would be the slower run that nobody asked for.
    It is left out on GPUs on which it was never run, as the table of the machine says;
    `model.kernels=cuda` insists.
    """
    precision, layer_spec = config.precision.name, config.model.layer_spec
    if precision == "auto":
        precision = "bf16" if backends.has_gpu else "fp32"
    if layer_spec == "auto":
        layer_spec = "te" if backends.has_te and backends.has_gpu else "torch"
    kernels = config.model.kernels
    if kernels == "auto":
        is_there = backends.kernels_were_run and backends.kernels_fault != NOT_BUILT
        fits = not any(kernel_limits(config.model, precision, backends.compute_capability))
        kernels = "cuda" if is_there and fits else "stock"
    return replace(
        config,
        data=settled(config.data),
        precision=replace(config.precision, name=precision),
        model=replace(
            config.model,
            num_layers=config.model.num_layers * config.model.layer_multiple,
            layer_multiple=1,
            layer_spec=layer_spec,
            kernels=kernels,
        ),
    )


def kernel_limits(
    model: ModelConfig, precision: str, capability: tuple[int, int] | None
) -> Iterator[tuple[str, str]]:
    """Yield what of a config the CUDA extension cannot compute, each with the limit."""
    # others have at most 100 KB of shared memory per block
    if capability is not None and capability != (8, 0) and not (9, 0) <= capability < (12, 0):
        found = ".".join(map(str, capability))
        yield f"compute capability {found}", "the extension is made for 8.0 and for 9.0 to 11.x"
    if precision == "fp32":
        yield "precision=fp32", "the extension computes in 16-bit numbers"
    if model.num_loops == 1:
        yield "model.num_loops=1", "there are no later loops"
    if model.hidden_size % 8:
        yield f"model.hidden_size={model.hidden_size}", "it has to be a multiple of 8"
    if not model.has_gates:
        return
    if model.gate == "hidden" and model.hidden_size % KERNEL_GATE_WIDTH:
        needed = f"the gate's kernel needs a multiple of {KERNEL_GATE_WIDTH}"
        yield f"model.hidden_size={model.hidden_size}", needed
    if model.gate == "hidden" and model.num_attention_heads > KERNEL_GATE_HEADS:
        heads = f"model.num_attention_heads={model.num_attention_heads}"
        yield heads, f"the gate's kernel takes at most {KERNEL_GATE_HEADS}"
    if model.head_dim not in KERNEL_HEAD_DIMS:
        yield f"model.head_dim={model.head_dim}", f"compiled are {KERNEL_HEAD_DIMS}"
    # what fits into the shared memory of an A100
    most = KERNEL_MAX_WINDOW if capability is None or capability >= (9, 0) else 128
    if model.window > most:
        yield f"model.window={model.window}", f"at most {most} keys fit into shared memory"


def processes_to_start(config: Config, backends: Backends) -> int:
    """Return how many processes a plain `loopcoder train` runs on, on all its nodes.

    One per GPU, as far as the global batch can be divided among them: the tiny preset runs on one
    GPU of eight. Where nothing fits, all GPUs, and the check says what does not.
    """
    p, t = config.parallel, config.train
    one_model = p.tp * p.pp * p.cp
    if p.nproc_per_node or not backends.has_gpu:
        return p.nodes * (p.nproc_per_node or -(-one_model // p.nodes))
    batch = t.batch_ramp.start if t.batch_ramp else t.global_batch_size
    gpus = p.nodes * backends.gpu_count
    for copies in range(gpus // one_model, 0, -1):
        if batch % (t.micro_batch_size * copies) == 0 and copies * one_model % p.nodes == 0:
            return copies * one_model
    return gpus
