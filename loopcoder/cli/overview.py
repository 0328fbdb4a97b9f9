"""What a run is, on a dozen lines: what was asked for, and the numbers that matter."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict

from loopcoder.config.fields import as_override
from loopcoder.config.mixture import lowest_terms
from loopcoder.config.objective import ObjectiveConfig
from loopcoder.config.schema import Config
from loopcoder.errors import counted
from loopcoder.optim.schedule import branching_step


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
    if objective := _objective(config.objective):
        rows.insert(2, ("objective", objective))
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
        f"{m.name}: {loops}, {counted(m.num_layers, 'layer')} of {m.hidden_size}, "
        f"MLP {m.ffn_hidden_size}, heads {m.num_attention_heads}/{m.num_kv_heads} of {m.head_dim}"
    )


def _objective(objective: ObjectiveConfig) -> str:
    """Name what is not the last loop's loss over all loops."""
    plain = asdict(ObjectiveConfig())
    own = {name: value for name, value in asdict(objective).items() if value != plain[name]}
    return ", ".join(f"{name}={as_override(value)}" for name, value in own.items())


def _data(config: Config) -> str:
    parts = []
    for stage in config.stages:
        weights = lowest_terms(stage.mixture)
        mixture = f"{' : '.join(weights)} = {' : '.join(map(str, weights.values()))}"
        until = "" if stage.until is None else f" until {counted(stage.until, 'token')}"
        parts.append(f"{mixture}, sequences of {stage.seq_length}{until}")
    path = f" ({config.data.path})" if config.data.path else ""
    skips = [
        f"; what {counted(skip.steps, 'step')} would take is left out before step {skip.step}"
        for skip in config.data.skip
    ]
    return f"{config.data.corpus_name}{path}: {'; then '.join(parts)}{''.join(skips)}"


def _steps(config: Config) -> str:
    t = config.train
    ramp = "" if t.batch_ramp is None else f" (from {t.batch_ramp.start})"
    return (
        f"{t.max_steps:,} of {counted(t.global_batch_size, 'sequence')}{ramp}, "
        f"{t.micro_batch_size} at once on each rank"
    )


def _optimizer(config: Config) -> str:
    o, s = config.optim, config.optim.schedule
    warmup = f"{s.warmup_fraction:.3g} of the steps"
    if s.warmup_steps is not None:
        warmup = counted(s.warmup_steps, "step")
    end, kind = f" to {o.min_lr:.3g}", str(s.kind)
    if s.kind == "wsd":
        decay = f"{s.decay_fraction:.3g} of the steps"
        if s.decay_steps is not None:
            decay = counted(s.decay_steps, "step")
        decays = bool(s.decay_fraction if s.decay_steps is None else s.decay_steps)
        kind = f"wsd, decay over the last {decay}" if decays else "wsd without a decay"
        end = end if decays else ""
    elif s.kind == "constant":
        end = ""
    vocabulary = ""
    if o.vocabulary_warmup_steps > 1:
        vocabulary = f" (embedding and head {counted(o.vocabulary_warmup_steps, 'step')})"
    return (
        f"Adam, lr {o.lr:.3g}{end} ({kind}), warm-up {warmup}{vocabulary}, "
        f"weight decay {o.weight_decay:g}, "
        f"clipped at {o.clip_grad:g}"
    )


def _layout(config: Config, processes: int) -> str:
    p, m = config.parallel, config.model
    copies = processes // (p.tp * p.pp * p.cp)
    sizes = f"dp {copies}, tp {p.tp}{' with sp' if p.sp else ''}, pp {p.pp}"
    return (
        f"{counted(processes, 'process')} ({sizes}), {config.precision.name}, "
        f"layers by {'Transformer Engine' if m.layer_spec == 'te' else 'torch'}, {m.kernels} "
        "kernels"
    )


def _intervals(config: Config) -> str:
    named = (("evaluation", config.eval.interval), ("checkpoint", config.checkpoint.interval))
    texts = [f"{name} {'at the end' if n is None else counted(n, 'step')}" for name, n in named]
    return ", ".join(texts) + _kept(config)


def _kept(config: Config) -> str:
    """Say which checkpoints stay: the newest, and the one where a wsd run begins to decay."""
    keep, interval = config.checkpoint.keep, config.checkpoint.interval
    branch = branching_step(config.optim, config.train.max_steps, None)
    texts = [] if keep is None else [f"{keep} kept"]
    if interval is not None and branch is not None:
        texts.append(f"and the one of step {branch:,}, where the decay begins")
    return f" ({', '.join(texts)})" if texts else ""
