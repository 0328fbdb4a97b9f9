"""What a run is, on a dozen lines: what was asked for, and the numbers that matter."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from loopcoder.config.mixture import lowest_terms
from loopcoder.config.schema import Config


def overview(config: Config, overrides: Sequence[str], processes: int) -> str:
    """Return a table of the run; the whole configuration is in its config.yaml."""
    rows = [
        ("asked for", shlex.join(overrides) or "nothing: the tiny preset on a sample"),
        ("model", _model(config)),
        ("data", _data(config)),
        ("steps", _steps(config)),
        ("optimizer", _optimizer(config)),
        ("layout", _layout(config, processes)),
        ("every", _intervals(config)),
        ("seed", str(config.seed)),
    ]
    if config.checkpoint.init_from is not None:
        rows.insert(2, ("weights from", config.checkpoint.init_from))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _model(config: Config) -> str:
    m = config.model
    loops = f"R = {m.num_loops}"
    if m.num_loops > 1:
        switches = [
            "shift" if m.shift else "no shift",
            f"window {m.window}" if m.has_gates else "no window",
            f"K/V {m.kv_sharing}",
        ]
        loops += f" ({', '.join(switches)})"
    return (
        f"{m.name}: {loops}, {m.num_layers} layers of {m.hidden_size}, MLP {m.ffn_hidden_size}, "
        f"heads {m.num_attention_heads}/{m.num_kv_heads} of {m.head_dim}"
    )


def _data(config: Config) -> str:
    parts = []
    for stage in config.stages:
        weights = lowest_terms(stage.mixture)
        mixture = f"{' : '.join(weights)} = {' : '.join(map(str, weights.values()))}"
        until = "" if stage.until is None else f" until {stage.until:,} tokens"
        parts.append(f"{mixture}, sequences of {stage.seq_length}{until}")
    path = f" ({config.data.path})" if config.data.path else ""
    return f"{config.data.corpus_name}{path}: {'; then '.join(parts)}"


def _steps(config: Config) -> str:
    t = config.train
    ramp = "" if t.batch_ramp is None else f" (from {t.batch_ramp.start})"
    return (
        f"{t.max_steps:,} of {t.global_batch_size} sequences{ramp}, {t.micro_batch_size} at once "
        f"on each rank"
    )


def _optimizer(config: Config) -> str:
    o, s = config.optim, config.optim.schedule
    warmup = f"{s.warmup_fraction:.3g} of the steps"
    if s.warmup_steps is not None:
        warmup = f"{s.warmup_steps} steps"
    end = "" if s.kind == "constant" else f" to {o.min_lr:.3g}"
    return (
        f"Adam, lr {o.lr:.3g}{end} ({s.kind}), warm-up {warmup}, weight decay {o.weight_decay:g}, "
        f"clipped at {o.clip_grad:g}"
    )


def _layout(config: Config, processes: int) -> str:
    p, m = config.parallel, config.model
    copies = processes // (p.tp * p.pp * p.cp)
    sizes = f"dp {copies}, tp {p.tp}{' with sp' if p.sp else ''}, pp {p.pp}"
    return (
        f"{processes} process{'' if processes == 1 else 'es'} ({sizes}), {config.precision.name}, "
        f"layers by {'Transformer Engine' if m.layer_spec == 'te' else 'torch'}, {m.kernels} "
        "kernels"
    )


def _intervals(config: Config) -> str:
    named = (("evaluation", config.eval.interval), ("checkpoint", config.checkpoint.interval))
    kept = config.checkpoint.keep
    texts = [f"{name} {'at the end' if n is None else f'{n} steps'}" for name, n in named]
    return ", ".join(texts) + (f" ({kept} kept)" if kept is not None else "")
