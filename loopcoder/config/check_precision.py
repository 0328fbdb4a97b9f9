"""What a number format and the kernels for it need of the machine and of the model's shape."""

from __future__ import annotations

from collections.abc import Iterator

from loopcoder.backends import Backends
from loopcoder.config.fields import next_multiple
from loopcoder.config.resolve import kernel_limits
from loopcoder.config.schema import Config
from loopcoder.errors import Problem, counted

_FP8_MULTIPLE = {"fp8_tensorwise": 16, "fp8_delayed": 16, "fp8_blockwise": 128}
"""FP8 matrix products take dimensions in multiples of 16, or of the block that has a scale."""


def check_precision(config: Config, backends: Backends) -> Iterator[Problem]:
    """Yield what stands between this config and its precision, layers and kernels."""
    m, name = config.model, config.precision.name
    capability = backends.compute_capability or (0, 0)
    gpu = (
        f"a GPU of compute capability {capability[0]}.{capability[1]}"
        if backends.has_gpu
        else "no GPU"
    )
    te = "Transformer Engine" if backends.has_te else "no Transformer Engine"
    if m.layer_spec == "te" and not (backends.has_gpu and backends.has_te):
        yield Problem(
            f"model.layer_spec=te, {gpu}, {te}",
            "its layers run on a GPU and come from the package transformer_engine",
            "model.layer_spec=torch, or, with a GPU, pip install --no-build-isolation '.[te]'",
        )
    if name == "bf16" and backends.has_gpu and capability < (8, 0):
        yield Problem(
            f"precision=bf16, {gpu}",
            "bfloat16 starts with compute capability 8.0",
            "precision=fp32",
        )
    if name == "fp8_delayed" and config.faults.replay_interval is not None:
        yield Problem(
            f"faults.replay_interval={config.faults.replay_interval} with precision=fp8_delayed",
            "its scales follow from what was computed before, so a step that is computed twice has "
            "other gradients the second time",
            "faults.replay_interval=null, or precision=fp8_tensorwise",
        )
    replays = config.faults.replay_interval
    if replays is not None and backends.has_gpu and not config.train.deterministic:
        yield Problem(
            f"faults.replay_interval={replays} with train.deterministic=false",
            "kernels that sum in another order each time give other bits without any fault",
            "faults.replay_interval=null, or train.deterministic=true, which is another run",
        )
    yield from _kernels(config, backends)
    yield from _bf16_layers(config)
    if not name.startswith("fp8"):
        return
    needed = (9, 0) if name == "fp8_blockwise" else (8, 9)
    if capability < needed:
        yield Problem(
            f"precision={name}, {gpu}",
            f"it needs compute capability {needed[0]}.{needed[1]} or newer",
            "precision=bf16",
        )
    if not backends.has_te:
        yield Problem(
            f"precision={name}, {te}",
            "FP8 matrix products come from the package transformer_engine",
            "pip install --no-build-isolation '.[te]', or precision=bf16",
        )
    if name == "fp8_delayed" and m.num_loops > 1:
        yield Problem(
            f"precision=fp8_delayed model.num_loops={m.num_loops}",
            "its history of maxima would be shared by loops whose activations differ",
            "precision=fp8_tensorwise, or model.num_loops=1",
        )
    # Without TE, "torch" is what auto became: the problem is the one above.
    if m.layer_spec == "torch" and backends.has_te and backends.has_gpu:
        yield Problem(
            f"precision={name} model.layer_spec=torch",
            "only Transformer Engine's layers compute in FP8",
            "model.layer_spec=te, or precision=bf16",
        )
    yield from _fp8_shapes(config)


def sequence_multiple(config: Config) -> int:
    """Return a number that the length of any sequence may be a multiple of, in tokens: every
    process then has an equal part of it, in dimensions that the number format takes."""
    p = config.parallel
    return p.cp * (p.tp if p.sp else 1) * _FP8_MULTIPLE.get(config.precision.name, 1)


def _kernels(config: Config, backends: Backends) -> Iterator[Problem]:
    if config.model.kernels != "cuda":
        return
    fact, stock = "model.kernels=cuda", "model.kernels=stock"
    if not backends.has_gpu:
        yield Problem(f"{fact}, no GPU", "its kernels run on a GPU", stock)
    elif backends.kernels_fault is not None:
        yield Problem(
            f"{fact}, the CUDA extension: {backends.kernels_fault}",
            "it is compiled for one torch and from one version of the sources",
            f"make kernels, or pip install --no-build-isolation -e ., or {stock}",
        )
    capability = backends.compute_capability
    for value, limit in kernel_limits(config.model, config.precision.name, capability):
        yield Problem(f"{fact} {value}", limit, stock)


def _bf16_layers(config: Config) -> Iterator[Problem]:
    p = config.precision
    layers, fields = config.model.num_layers // config.parallel.pp, {}
    for key in ("bf16_layers_at_start", "bf16_layers_at_end"):
        if getattr(p, key):
            fields[key] = getattr(p, key)
    facts = " ".join(f"precision.{key}={value}" for key, value in fields.items())
    fix = " ".join(f"precision.{key}=0" for key in fields)
    if fields and not p.name.startswith("fp8"):
        yield Problem(f"{facts} precision={p.name}", "without FP8 no layer is an exception", fix)
    elif fields and p.name == "fp8_delayed":
        yield Problem(
            f"{facts} precision=fp8_delayed",
            "Transformer Engine reduces the maxima of all layers together",
            f"{fix}, or precision=fp8_tensorwise",
        )
    elif fields and max(fields.values()) > layers:
        yield Problem(
            f"{facts} with {counted(layers, 'layer')} per pipeline stage",
            "megatron-core keeps exceptions within one stage",
            " ".join(f"precision.{key}={min(value, layers)}" for key, value in fields.items()),
        )


def _fp8_shapes(config: Config) -> Iterator[Problem]:
    m, p, name = config.model, config.parallel, config.precision.name
    multiple = _FP8_MULTIPLE[name]
    sizes = {
        "model.hidden_size": (m.hidden_size, 1),
        "model.ffn_hidden_size": (m.ffn_hidden_size, p.tp),
        "model.num_attention_heads*model.head_dim": (m.num_attention_heads * m.head_dim, p.tp),
        "model.num_kv_heads*model.head_dim": (m.num_kv_heads * m.head_dim, p.tp),
    }
    tokens_over = p.cp * (p.tp if p.sp else 1)
    micro = config.train.micro_batch_size
    lengths = [("data.seq_length", stage.seq_length) for stage in config.stages]
    lengths += [("eval.lengths", length) for length in config.eval.lengths or []]
    for field, length in lengths:
        key = f"train.micro_batch_size*{field} ({micro}*{length})"
        sizes[key] = (micro * length, tokens_over)
    for key, (size, over) in sizes.items():
        if size % over == 0 and (size // over) % multiple:
            share = f" of which each process has {size // over}" if over > 1 else ""
            yield Problem(
                f"precision={name} {key}={size}{share}",
                f"FP8 matrix products need multiples of {multiple}",
                f"make it {next_multiple(size, multiple * over)}, or precision=bf16",
            )
