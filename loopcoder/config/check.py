"""Every rule that needs several fields, or the machine: all broken ones are raised together.

Pure Python, so that it runs before torch is imported and at submit time. The schema has already
checked types and ranges; what needs the corpus (its domains, its size) is checked once that exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd, lcm
from pathlib import Path

from loopcoder.backends import Backends
from loopcoder.config.check_data import check_data
from loopcoder.config.check_graphs import check_graphs
from loopcoder.config.check_objective import check_objective
from loopcoder.config.check_precision import check_precision
from loopcoder.config.check_samples import check_samples
from loopcoder.config.check_secrets import check_secrets
from loopcoder.config.check_store import check_store
from loopcoder.config.corpora import joined_corpora
from loopcoder.config.fields import as_override, next_multiple
from loopcoder.config.mixture import lowest_terms
from loopcoder.config.schema import VOCAB_MULTIPLE, Config
from loopcoder.errors import InputError, Problem, counted

_NOT_BUILT = (("parallel.cp", "context parallelism"),)
"""Fields that must stay 1 until what they ask for is built: delete a line when it is."""


def check(config: Config, world_size: int, backends: Backends) -> None:
    """Raise InputError with everything about this config that cannot run on `world_size` processes.

    `precision.name`, `model.layer_spec` and `model.kernels` are expected to be resolved
    (`resolve`), not "auto".
    """
    problems = [
        *_model(config),
        *_layout(config, world_size, backends),
        *_stages(config),
        *_microbatches(config, world_size),
        *check_batch(config, world_size),
        *check_data(config),
        *check_samples(config),
        *_optim(config),
        *check_objective(config),
        *check_precision(config, backends),
        *check_graphs(config, world_size, backends),
        *_sinks(config, backends),
        *_profile(config, backends),
        *_run_dir(config),
        *_checkpoint(config),
        *check_store(config),
        *check_secrets(config),
    ]
    if problems:
        raise InputError(problems)


def check_layout(config: Config, world_size: int, backends: Backends) -> None:
    """Raise InputError with everything that keeps a model from running, without training, on
    `world_size` processes; resolved as for `check`."""
    problems = [
        *_layout(config, world_size, backends),
        *_stages(config),
        *check_precision(config, backends),
    ]
    if problems:
        raise InputError(problems)


def batch_unit(mixture: dict[str, float]) -> int:
    """Return the smallest number of sequences that holds the mixture exactly: 5 for 2:3."""
    return sum(lowest_terms(mixture).values())


def batch_sizes(config: Config) -> list[int]:
    """Return every global batch size of the run: those of the ramp and the final one."""
    ramp, full = config.train.batch_ramp, config.train.global_batch_size
    return [full] if ramp is None else [*range(ramp.start, full, ramp.increment), full]


def _model(config: Config) -> Iterator[Problem]:
    m = config.model
    if m.num_attention_heads % m.num_kv_heads:
        yield Problem(
            f"model.num_attention_heads={m.num_attention_heads} "
            f"model.num_kv_heads={m.num_kv_heads}",
            "each key/value head serves the same number of query heads",
            f"model.num_kv_heads={gcd(m.num_attention_heads, m.num_kv_heads)}",
        )
    if m.head_dim % 2:
        yield Problem(
            f"model.head_dim={m.head_dim}",
            "rotary position embedding turns pairs of values",
            f"model.head_dim={m.head_dim + 1}",
        )
    if m.vocab_size is not None and m.vocab_size % VOCAB_MULTIPLE:
        yield Problem(
            f"model.vocab_size={m.vocab_size}",
            f"embedding and head have a multiple of {VOCAB_MULTIPLE} rows in every layout",
            f"model.vocab_size={next_multiple(m.vocab_size, VOCAB_MULTIPLE)}",
        )


def _layout(config: Config, world_size: int, backends: Backends) -> Iterator[Problem]:
    m, p = config.model, config.parallel
    split = {
        "model.num_attention_heads": m.num_attention_heads,
        "model.num_kv_heads": m.num_kv_heads,
        "model.ffn_hidden_size": m.ffn_hidden_size,
        "model.vocab_size": m.vocab_size or VOCAB_MULTIPLE,
    }
    fits = gcd(p.tp, *split.values())
    for key, size in split.items():
        if size % p.tp:
            yield Problem(
                f"parallel.tp={p.tp} {key}={size}",
                "tensor parallelism gives every process an equal share",
                f"parallel.tp={fits}",
            )
    model_size = p.tp * p.pp * p.cp
    if world_size % model_size:
        processes = next_multiple(world_size, model_size)
        yield Problem(
            f"{counted(world_size, 'process')}, parallel.tp={p.tp} parallel.pp={p.pp} "
            f"parallel.cp={p.cp}",
            f"one copy of the model takes tp*pp*cp = {counted(model_size, 'process')}",
            f"parallel.nproc_per_node={processes}, or parallel.tp=1",
        )
    if backends.has_gpu and (p.nproc_per_node or 1) > backends.gpu_count:
        yield Problem(
            f"parallel.nproc_per_node={p.nproc_per_node}, {counted(backends.gpu_count, 'GPU')}",
            "every process needs a GPU of its own",
            f"parallel.nproc_per_node={backends.gpu_count}",
        )
    if p.rendezvous is not None and p.nodes == 1:
        yield Problem(
            f"parallel.rendezvous={p.rendezvous} parallel.nodes=1",
            "one node meets no other: each would train a run of its own",
            "parallel.nodes=N, or parallel.rendezvous=null",
        )
    if p.sp and p.tp == 1:
        yield Problem(
            "parallel.sp=true parallel.tp=1",
            "sequence parallelism splits the sequence over the tensor-parallel processes",
            "parallel.sp=false, or parallel.tp=2",
        )
    if p.overlap_param_gather and not (p.overlap_grad_reduce and p.distributed_optimizer):
        yield Problem(
            f"parallel.overlap_param_gather=true "
            f"parallel.overlap_grad_reduce={as_override(p.overlap_grad_reduce)} "
            f"parallel.distributed_optimizer={as_override(p.distributed_optimizer)}",
            "only sharded parameters are gathered, in the buckets of the overlapped reduction",
            "parallel.overlap_grad_reduce=true parallel.distributed_optimizer=true",
        )
    for key, what in _NOT_BUILT:
        size = getattr(p, key.rsplit(".", 1)[-1])
        if size > 1:
            yield Problem(f"{key}={size}", f"{what} is not built yet", f"{key}=1")


def _stages(config: Config) -> Iterator[Problem]:
    p, layers = config.parallel, config.model.num_layers
    if p.chunks_per_loop > 1 and p.pp == 1:
        yield Problem(
            f"parallel.chunks_per_loop={p.chunks_per_loop} parallel.pp=1",
            "a loop is cut into chunks to interleave pipeline stages",
            "parallel.chunks_per_loop=1",
        )
    if p.pp > 1 and layers < p.pp * p.chunks_per_loop:
        parts = "" if p.chunks_per_loop == 1 else f" of each of {p.chunks_per_loop} parts of a loop"
        yield Problem(
            f"model.num_layers={layers} parallel.pp={p.pp} "
            f"parallel.chunks_per_loop={p.chunks_per_loop}",
            f"each of {p.pp} stages holds a layer{parts}",
            f"parallel.chunks_per_loop={max(1, layers // p.pp)}"
            if p.chunks_per_loop > 1 and layers >= p.pp
            else f"parallel.pp={layers} parallel.chunks_per_loop=1",
        )


def _microbatches(config: Config, world_size: int) -> Iterator[Problem]:
    p = config.parallel
    dp = max(1, world_size // (p.tp * p.pp * p.cp))
    smallest = min(batch_sizes(config))
    microbatches = smallest // (config.train.micro_batch_size * dp)
    if p.pp > 1 and microbatches < p.pp:
        needed = p.pp * config.train.micro_batch_size * dp
        yield Problem(
            f"parallel.pp={p.pp} with {counted(smallest, 'sequence')} per step: "
            f"{counted(microbatches, 'microbatch')}",
            "a pipeline needs at least as many microbatches as it has stages",
            f"train.global_batch_size={next_multiple(config.train.global_batch_size, needed)}"
            if config.train.batch_ramp is None
            else f"train.batch_ramp.start={next_multiple(smallest, needed)}",
        )


def check_batch(config: Config, world_size: int) -> Iterator[Problem]:
    """Yield why no global batch can be dealt out to the ranks, or have its proportions."""
    t, p = config.train, config.parallel
    dp = max(1, world_size // (p.tp * p.pp * p.cp))
    per_pass = t.micro_batch_size * dp
    unit = lcm(*(batch_unit(s.mixture) for s in config.stages if s.mixture))
    good = lcm(per_pass, unit)
    full = t.global_batch_size
    ramp = t.batch_ramp
    if ramp is not None and (ramp.start > full or (full - ramp.start) % ramp.increment):
        yield Problem(
            f"train.batch_ramp.start={ramp.start} train.batch_ramp.increment={ramp.increment} "
            f"train.global_batch_size={full}",
            "start plus a whole number of increments must give the full batch",
            f"train.batch_ramp.start={min(good, full)} train.batch_ramp.increment={good} "
            f"train.global_batch_size={next_multiple(full, good)}",
        )
        return
    for size in batch_sizes(config):
        if not size % good:
            continue
        facts = (
            [f"train.global_batch_size={full}"]
            if size == full
            else [
                f"a global batch of {size} (train.batch_ramp.start={ramp.start} "  # type: ignore[union-attr]
                f"train.batch_ramp.increment={ramp.increment})"  # type: ignore[union-attr]
            ]
        )
        whys = []
        if size % per_pass:
            facts.append(f"train.micro_batch_size={t.micro_batch_size}")
            whys.append(
                f"{counted(dp, 'data-parallel rank')} with "
                f"{counted(t.micro_batch_size, 'sequence')} each "
                f"{'does' if dp == 1 else 'do'} {per_pass} at a time"
            )
        if size % unit:
            mixtures = [s.mixture for s in config.stages if s.mixture]
            key = "data.corpora come to " if joined_corpora(config.data) else "data.mixture="
            facts.append(f"{key}{' then '.join(map(as_override, mixtures))}")
            whys.append(f"only multiples of {unit} sequences have exactly these proportions")
        fix = f"train.global_batch_size={next_multiple(full, good)}"
        if ramp is None and size % unit == 0 and (fewer := _fewer_at_once(config, dp)):
            fix = f"train.micro_batch_size={fewer}, which changes no number, or {fix}"
        if size != full:
            fix = f"train.batch_ramp.start={next_multiple(ramp.start, good)} "  # type: ignore[union-attr]
            fix += f"train.batch_ramp.increment={next_multiple(ramp.increment, good)}"  # type: ignore[union-attr]
        yield Problem(" ".join(facts), ", and ".join(whys), fix)
        return  # the other levels of the ramp break for the same reason


def _fewer_at_once(config: Config, dp: int) -> int | None:
    """Return the most sequences at once, fewer than are asked for, that divide the global batch."""
    full, asked = config.train.global_batch_size, config.train.micro_batch_size
    return next((n for n in range(asked - 1, 0, -1) if full % (n * dp) == 0), None)


def _optim(config: Config) -> Iterator[Problem]:
    o, s, steps = config.optim, config.optim.schedule, config.train.max_steps
    if s.warmup_steps is not None and s.warmup_steps > steps:
        yield Problem(
            f"optim.schedule.warmup_steps={s.warmup_steps} train.max_steps={steps}",
            "the learning rate would never reach its peak",
            f"optim.schedule.warmup_steps={round(steps * s.warmup_fraction)}",
        )
    elif s.kind == "wsd":
        warmup = s.warmup_fraction if s.warmup_steps is None else s.warmup_steps / steps
        decay, name = s.decay_fraction, "decay_fraction"
        if s.decay_steps is not None:
            decay, name = s.decay_steps / steps, "decay_steps"
        if warmup + decay > 1 and not config.checkpoint.init_position:
            most = max(0.0, 1 - warmup)
            yield Problem(
                f"optim.schedule.{name}={getattr(s, name):g} after a warm-up of {warmup:g}",
                "warm-up and decay overlap",
                f"optim.schedule.{name}={int(most * steps) if s.decay_steps else most:g}",
            )
    if s.decay_steps is not None and s.kind != "wsd":
        yield Problem(
            f"optim.schedule.decay_steps={s.decay_steps} optim.schedule.kind={s.kind}",
            "only wsd has a decay of its own length",
            "optim=adam_wsd, or optim.schedule.decay_steps=null",
        )
    if o.min_lr > o.lr:
        yield Problem(
            f"optim.min_lr={o.min_lr:g} optim.lr={o.lr:g}",
            "the schedule ends below its peak",
            f"optim.min_lr={o.lr / 10:g}",
        )


def _sinks(config: Config, backends: Backends) -> Iterator[Problem]:
    log = config.logging
    if log.wandb in ("online", "offline") and not backends.has("wandb"):
        yield Problem(
            f"logging.wandb={log.wandb}",
            "wandb is not installed",
            "pip install wandb, or logging.wandb=auto",
        )
    if log.tensorboard == "on" and not backends.has("tensorboard"):
        yield Problem(
            "logging.tensorboard=on",
            "tensorboard is not installed",
            "pip install tensorboard, or logging.tensorboard=auto",
        )


def _profile(config: Config, backends: Backends) -> Iterator[Problem]:
    steps = config.profile.memory_steps
    if steps and not backends.has_gpu:
        yield Problem(
            f"profile.memory_steps={as_override(steps)}, no GPU",
            "the snapshots are of CUDA memory",
            "profile.memory_steps=[]",
        )


def _run_dir(config: Config) -> Iterator[Problem]:
    if config.run_dir is None:
        return
    run_dir = Path(config.run_dir).expanduser().resolve()
    for source in config.data.build.sources:
        paths = [source.path] if isinstance(source.path, str) else source.path or []
        for path in paths:
            if source.kind in ("files", "chat") and "://" not in path:
                folder = Path(path).expanduser().resolve()
                if folder == run_dir or folder.is_relative_to(run_dir):
                    yield Problem(
                        f"run_dir={config.run_dir} holds the documents of path={path}",
                        "a run's folder is no source, so that they would not be found again",
                        "run_dir=ANOTHER_FOLDER, which may lie below the documents",
                    )


def _checkpoint(config: Config) -> Iterator[Problem]:
    c = config.checkpoint
    run_dir = None if config.run_dir is None else Path(config.run_dir).expanduser()
    continues = run_dir is not None and any(run_dir.glob("checkpoints/step_*/manifest.json"))
    origin = None if c.init_from is None or continues else Path(c.init_from).expanduser()
    if origin and run_dir and origin.resolve().is_relative_to(run_dir.resolve()):
        yield Problem(
            f"checkpoint.init_from={c.init_from} is of this run itself, and {run_dir} has no "
            "complete checkpoint",
            "init_from starts a run from the weights of another; its own it goes on from anyway",
            "checkpoint.init_from=null, or the folder of another run",
        )
    for name, what in (("init_optimizer", "optimizer's state"), ("init_position", "position")):
        if getattr(c, name) and c.init_from is None:
            yield Problem(
                f"checkpoint.{name}=true checkpoint.init_from=null",
                f"there is no checkpoint to take the {what} from",
                f"checkpoint.{name}=false, or checkpoint.init_from=DIR",
            )
