"""What a run starts from, and whether that fits, before anything long is done."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.choice import own_checkpoint
from loopcoder.checkpoint.continuing import (
    jump_of_the_rate,
    jump_of_the_vocabulary,
    other_position,
    trained_warmup,
)
from loopcoder.checkpoint.copies.places import find_at
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.put_off import stage_put_off
from loopcoder.checkpoint.sources import other_sources
from loopcoder.checkpoint.state import CheckpointState
from loopcoder.config.check_objective import unbounded_states
from loopcoder.config.fields import typed
from loopcoder.config.identity import changes
from loopcoder.config.schema import SHAPE, CheckpointConfig, Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.joined import trained_part
from loopcoder.data.ledger import Ledger
from loopcoder.data.manifest import MANIFEST
from loopcoder.data.places import TOKENIZER
from loopcoder.data.sampler import Position, enter_stage, orders_anew, unreached
from loopcoder.errors import InputError, Problem, counted
from loopcoder.model.vocabulary import padded_vocabulary
from loopcoder.optim.schedule import branching_step, rate_scales, unreached_rate, warmup_steps
from loopcoder.storage.remote import is_url

_WEIGHTS = (*SHAPE, "gate", "kv_sharing")
"""Fields of `model` that decide which weights exist."""


@dataclass(frozen=True)
class Start:
    """The checkpoint that a run starts from."""

    checkpoint: Checkpoint
    resumes: bool
    """It is this run's own, which goes on; else another run's, from which this one branches."""
    keeps_position: bool = False
    """A branch that goes on in the data where the checkpoint stood."""

    @property
    def goes_on(self) -> bool:
        """Steps, data and schedule go on where the checkpoint stood."""
        return self.resumes or self.keeps_position


def find_start(
    config: Config, run_dir: Path, *, sizes: bool = False, loads: bool = False
) -> Start | None:
    """Return what the run starts from; None: from its own initial weights.

    A run that has checkpoints of its own continues from them even when init_from is given: the same
    command again resumes. `sizes`, and what is raised, are those of `own_checkpoint`.

    Args:
        loads: Fetch the shards, too, of a checkpoint that init_from names by a URL, and not only
            what a check of the start reads.
    """
    if own := own_checkpoint(run_dir, config.checkpoint, sizes=sizes):
        return Start(own, resumes=True)
    if config.checkpoint.init_from:
        found = find_at(
            config.checkpoint.init_from, _cache(config), "checkpoint.init_from", shards=loads
        )
        return Start(found, resumes=False, keeps_position=config.checkpoint.init_position)
    return None


def _cache(config: Config) -> Path:
    return Path(config.data.build.cache_dir).expanduser()


@dataclass(frozen=True)
class Reached:
    """Where a run stands that has as many steps as it is asked for, or more."""

    step: int
    """Of its newest checkpoint."""
    max_steps: int
    """What it was to have when that was saved."""
    kept: CheckpointConfig
    """Which checkpoints it kept."""
    spared: int | None = None
    """Step where it began to decay, whose checkpoint stays."""


def finished_at(config: Config, run_dir: Path) -> Reached | None:
    """Return where a run stands that has nothing left to train; None: it has.

    Nothing is loaded of a run that is finished, and its shards are not read: their sizes are
    compared, and the bytes of all else. One process is to call it.
    """
    own = own_checkpoint(run_dir, config.checkpoint, sizes=True)
    if own is None or own.step < config.train.max_steps:
        return None
    if stage_put_off(run_dir, own.step) is not None:
        return None
    before = own.config()
    planned = before.train.max_steps
    spared = branching_step(before.optim, planned, own.state().warmup_steps)
    return Reached(own.step, planned, before.checkpoint, spared)


def with_kept_reader(config: Config, start: Start | None, sibling: Path | None = None) -> Config:
    """Return a config with the reader of a run that goes on in place of `auto`: each has an order
    of its own.

    Args:
        sibling: Folder of a run whose order a run that begins takes.
    """
    if config.data.reader != "auto":
        return config
    if start is not None and start.goes_on:
        before = start.checkpoint.config()
    elif sibling is not None and (sibling / layout.CONFIG).is_file():
        before = layout.trained_with(sibling)
    else:
        return config
    return replace(config, data=replace(config.data, reader=before.data.reader))


def check_start(config: Config, run_dir: Path, corpus: Corpus | None = None) -> None:
    """Compare a run with what it would start from; without a corpus, as far as that needs none.

    Raises:
        InputError: with every mismatch.
    """
    start = find_start(config, run_dir)
    if start is None:
        return
    if corpus is not None:
        rows = padded_vocabulary(config.model, corpus.vocab_size, corpus.tokenizer_path)
        check_fits(start, config, rows, corpus)
        return
    before, state = start.checkpoint.config(), start.checkpoint.state()
    problems = list(_other_run(start, state, before, config))
    if config.model.vocab_size is not None:
        problems += _other_rows(start.checkpoint, state, config.model.vocab_size)
    if problems:
        raise InputError(problems)


def check_fits(start: Start, config: Config, vocab_size: int, corpus: Corpus) -> list[str]:
    """Compare a checkpoint with the run that wants to load it, before anything long is done.

    Returns notes for the user: what may differ but is not to differ unnoticed. Raises InputError
    with every mismatch.
    """
    config, checkpoint = with_kept_reader(config, start), start.checkpoint
    before, state = checkpoint.config(), checkpoint.state()
    problems = [
        *_other_run(start, state, before, config),
        *_other_rows(checkpoint, state, vocab_size),
        *_other_text(checkpoint, state, corpus, start.resumes),
    ]
    if problems:
        raise InputError(problems)
    notes = list(_gates_that_differ(checkpoint, before, config))
    if not start.goes_on:
        return notes
    notes += _jumps(start, config)
    if state.corpus != trained_part(corpus, before.data):
        notes.append(
            f"warning: the corpus is {corpus.fingerprint}, steps up to {checkpoint.step} were "
            f"trained on {state.corpus}: from here on it is other data"
        )
    if not start.resumes:
        return notes
    if unused := _unused_origin(checkpoint, before, config):
        notes.insert(0, unused)
    changed = [c for c in changes(before, config) if not c.startswith("checkpoint.init_")]
    return notes + [f"changed since step {checkpoint.step}: {c}" for c in changed]


def unused_origin(config: Config, run_dir: Path) -> str | None:
    """Return what to say of an init_from that has no effect, since the run goes on from a
    checkpoint of its own; None: it has one, or the run began from there."""
    start = find_start(config, run_dir)
    if start is None or not start.resumes or config.checkpoint.init_from is None:
        return None
    return _unused_origin(start.checkpoint, start.checkpoint.config(), config)


def _unused_origin(own: Checkpoint, before: Config, config: Config) -> str | None:
    named = config.checkpoint.init_from
    if named is None:
        return None
    folder, path = own.path.parent.resolve(), Path(named).expanduser().resolve()
    goes_on = f"this run goes on from its own newest checkpoint, step {own.step}"
    if path in (folder.parent, folder, own.path.resolve()):
        return f"checkpoint.init_from={named} changes nothing: {goes_on}, without it too"
    if not path.is_relative_to(folder) and named == before.checkpoint.init_from:
        return None
    return (
        f"warning: checkpoint.init_from={named} is not used: {goes_on}; "
        "run_dir=ANOTHER_FOLDER branches from there"
    )


def early_notes(config: Config, run_dir: Path) -> list[str]:
    """Return what is to be said of a run's schedules before there is a corpus or a model. One
    process is to call it."""
    start = find_start(config, run_dir, sizes=True)
    return [*_begun_otherwise(config, run_dir, start), *notes_of_schedules(config, start)]


def _begun_otherwise(config: Config, run_dir: Path, start: Start | None) -> Iterator[str]:
    """Yield that a run which ended before its first checkpoint begins again as another one."""
    is_new = start is None or not start.resumes
    if not is_new or config.checkpoint.resume == "never":
        return
    if not (run_dir / layout.CONFIG).is_file():
        return
    before = layout.trained_with(run_dir)
    if config.data.reader == "auto":  # which is settled when the corpus is open
        before = replace(before, data=replace(before.data, reader="auto"))
    if changed := changes(before, config):
        yield (
            f"warning: {run_dir} has no checkpoint of its own, and begins anew with another config "
            f"than it was started with: {'; '.join(changed)}"
        )


def notes_of_schedules(config: Config, start: Start | None) -> list[str]:
    """Return what is to be said of the schedules and the objective of a run that starts from a
    checkpoint."""
    goes_on = start is not None and start.goes_on
    position = start.checkpoint.state().position if start and goes_on else Position()
    position = enter_stage(config.stages, position)
    found = [
        unreached_rate(config.optim, config.train.max_steps),
        unbounded_states(config),
        *unreached(config, position),
        *orders_anew(config, position),
        *(_jumps(start, config) if start and goes_on else ()),
    ]
    return [note for note in found if note is not None]


def _jumps(start: Start, config: Config) -> list[str]:
    checkpoint = start.checkpoint
    before = checkpoint.config()
    others = [checkpoint] if checkpoint.url else layout.complete(checkpoint.path.parent)
    jumps = (
        jump_of_the_rate(checkpoint.state(), before, config, others),
        jump_of_the_vocabulary(checkpoint.step, before, config),
    )
    return [jump for jump in jumps if jump is not None]


def ledger_of(start: Start | None) -> Ledger:
    """Return the tokens by label that a run goes on from; an earlier version has not counted
    them."""
    if start is None or not start.goes_on:
        return Ledger()
    state = start.checkpoint.state()
    return Ledger.from_here(state.position) if state.ledger is None else state.ledger


def warmup_of(start: Start | None, config: Config) -> int:
    """Return the steps of warm-up: those that a run has had that goes on, else the config's."""
    warmup = None
    if start is not None and start.goes_on:
        before = start.checkpoint.config()
        warmup = trained_warmup(start.checkpoint.state(), before, config)
    return warmup_steps(config.optim, config.train.max_steps) if warmup is None else warmup


def _other_run(
    start: Start, state: CheckpointState, before: Config, config: Config
) -> Iterator[Problem]:
    """Yield what of a checkpoint does not fit, whatever the corpus is."""
    checkpoint, steps = start.checkpoint, config.train.max_steps
    yield from _other_weights(checkpoint, before, config)
    yield from _other_loops(checkpoint, before, config, start.resumes)
    yield from _other_rates(checkpoint, before, config, start.resumes)
    if start.keeps_position and steps <= state.step:
        yield Problem(
            f"train.max_steps={steps}, {checkpoint.place} is at step {state.step}",
            "checkpoint.init_position=true counts the steps from there",
            f"train.max_steps={state.step + steps} for {counted(steps, 'step')} more",
        )
    other = list(other_sources(before, config)) if start.resumes else []
    yield from other
    if start.goes_on and not other:
        yield from other_position(checkpoint, state, before, config)


def _other_weights(checkpoint: Checkpoint, before: Config, config: Config) -> Iterator[Problem]:
    ours, theirs = config.model, before.model
    for name in _WEIGHTS:
        wanted, found = getattr(ours, name), getattr(theirs, name)
        if name in ("gate", "kv_sharing") and not (ours.num_loops > 1 and theirs.num_loops > 1):
            continue
        if wanted != found:
            yield Problem(
                f"model.{name}={wanted}, the checkpoint {checkpoint.place} has {found}",
                "its weights have another shape or meaning",
                f"model.{name}={found}, or another run_dir= to train this model from the start",
            )


def _other_rows(
    checkpoint: Checkpoint, state: CheckpointState, vocab_size: int
) -> Iterator[Problem]:
    if state.vocab_size != vocab_size:
        yield Problem(
            f"the vocabulary has {vocab_size} rows, "
            f"the checkpoint {checkpoint.place} {state.vocab_size}",
            "the embedding would not fit",
            f"model.vocab_size={state.vocab_size} with the tokenizer it was trained with",
        )


def _other_text(
    checkpoint: Checkpoint, state: CheckpointState, corpus: Corpus, resumes: bool
) -> Iterator[Problem]:
    if state.has_tokenizer and state.tokenizer_hash != corpus.tokenizer_hash:
        yield Problem(
            f"the corpus has another tokenizer than the checkpoint {checkpoint.place}",
            "the same ids mean other text",
            kept_tokens(checkpoint, state, resumes),
        )


def kept_tokens(checkpoint: Checkpoint, state: CheckpointState, resumes: bool) -> str:
    """Return the overrides under which ids mean what they meant when a checkpoint was trained."""
    copied = checkpoint.path / TOKENIZER
    tokenizer = copied if copied.is_file() else state.tokenizer_path
    fixes = [f"{typed(f'data.build.tokenizer={tokenizer}')} keeps the ids of these weights"]
    if is_url(state.corpus_dir) or (Path(state.corpus_dir) / MANIFEST).is_file():
        named = typed(f"path={state.corpus_dir}")
        fixes.append(f"data=corpus {named} is the corpus that it was trained on")
    return ", or ".join([*fixes, *(["another run_dir="] if resumes else [])])


def _other_loops(
    checkpoint: Checkpoint, before: Config, config: Config, resumes: bool
) -> Iterator[Problem]:
    path, ours, theirs = checkpoint.path, config.model, before.model
    if resumes and ours.num_loops != theirs.num_loops:
        yield Problem(
            f"model.num_loops={ours.num_loops}, "
            f"the run in {path.parents[1]} has {theirs.num_loops}",
            "another number of loops is another run, which may start from these weights",
            f"run_dir=ANOTHER_FOLDER checkpoint.init_from={path}, "
            f"or model.num_loops={theirs.num_loops}",
        )
    sharded = config.parallel.distributed_optimizer or config.precision.name == "fp32"
    new = []
    if ours.has_gates and not theirs.has_gates and not resumes:
        new.append(f"new gates (num_loops={theirs.num_loops} -> {ours.num_loops})")
    if _has_exit_gate(config) and not _has_exit_gate(before):
        new.append("a new exit gate (objective.exit=true)")
    if new and (resumes or config.checkpoint.init_optimizer) and not sharded:
        yield Problem(
            f"{'' if resumes else 'checkpoint.init_optimizer=true '}"
            f"parallel.distributed_optimizer=false with {' and '.join(new)}",
            "megatron-core's plain bf16 optimizer saves its state without names, "
            "so that nothing can be added to it",
            "parallel.distributed_optimizer=true, or "
            + ("objective.exit=false" if resumes else "checkpoint.init_optimizer=false"),
        )


def _other_rates(
    checkpoint: Checkpoint, before: Config, config: Config, resumes: bool
) -> Iterator[Problem]:
    """Adam's state is saved by groups of one rate, which megatron-core cannot regroup."""
    if not (resumes or config.checkpoint.init_optimizer):
        return
    fix = f"checkpoint.init_from={checkpoint.place} run_dir=ANOTHER_FOLDER for the weights alone"
    ours, theirs = (rate_scales(c.model, c.optim) for c in (config, before))
    for kind in (k for k in ours if ours[k] != theirs[k]):
        yield Problem(
            f"each {kind} learns at {ours[kind]:g} * optim.lr, "
            f"in the checkpoint {checkpoint.place} at {theirs[kind]:g} * optim.lr",
            "the optimizer's state is kept by groups of one rate: optim.base_hidden_size, "
            "optim.base_num_layers, optim.embedding_lr_scale, optim.head_lr_scale and "
            "model.residual_scale stay",
            f"the values of {checkpoint.place}/{layout.CONFIG}, or {fix}",
        )
    steps, before_steps = (c.optim.vocabulary_warmup_steps for c in (config, before))
    if bool(steps) != bool(before_steps):
        yield Problem(
            f"optim.vocabulary_warmup_steps={steps}, in the checkpoint {checkpoint.place} "
            f"{before_steps}",
            "with 0 embedding and head are in one group with others, with more they are not, and "
            "the optimizer's state is kept by groups",
            f"optim.vocabulary_warmup_steps={before_steps}, or {fix}",
        )


def _gates_that_differ(checkpoint: Checkpoint, before: Config, config: Config) -> Iterator[str]:
    ours, theirs, path = config.model, before.model, checkpoint.place
    if ours.has_gates and not theirs.has_gates:
        start = 1 / (1 + math.exp(-ours.gate_bias_init))
        yield (
            f"warning: {path} has no gates (num_loops={theirs.num_loops}): they start at "
            f"g = {start:.2g}"
        )
    elif theirs.has_gates and not ours.has_gates:
        yield f"the gates of {path} are dropped: num_loops={ours.num_loops} has none"
    if _has_exit_gate(config) and not _has_exit_gate(before):
        yield f"warning: {path} has no exit gate: it starts at lambda = 0.5 (objective.exit=true)"
    elif _has_exit_gate(before) and not _has_exit_gate(config):
        yield f"the exit gate of {path} is dropped: objective.exit=false, or one loop, has none"


def _has_exit_gate(config: Config) -> bool:
    return config.objective.has_gate(config.model.num_loops)
