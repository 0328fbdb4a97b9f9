"""Load a checkpoint into a run of any layout, after checking that it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.fp8_history import is_history, restore
from loopcoder.checkpoint.save import sharded_state
from loopcoder.checkpoint.state import CheckpointState
from loopcoder.config.compose import load_config
from loopcoder.config.identity import changes
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.errors import InputError, Problem
from loopcoder.optim.rates import rate_scales

_SHAPE = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_kv_heads",
    "head_dim",
    "gate",
    "kv_sharing",
)
"""Fields of `model` that decide which weights exist."""


@dataclass(frozen=True)
class Start:
    """The checkpoint that a run starts from."""

    checkpoint: Checkpoint
    resumes: bool
    """It is this run's own, which goes on; else another run's, from which this one branches."""


def find_start(config: Config, run_dir: Path) -> Start | None:
    """Return what the run starts from; None: from its own initial weights.

    A run that has checkpoints of its own continues from them even when init_from is given: the same
    command again resumes. Raises InputError where resume=require finds nothing, or never would
    overwrite.
    """
    folder = run_dir / "checkpoints"
    own = layout.complete(folder)
    mode = config.checkpoint.resume
    if mode == "never" and own:
        raise InputError.of(
            f"checkpoint.resume=never, but {folder} has checkpoints up to step {own[-1].step}",
            "a new run in this folder would mix with the old one",
            "run_dir=ANOTHER_FOLDER, or checkpoint.resume=auto to continue",
        )
    if mode == "require" and not own:
        raise InputError.of(
            f"checkpoint.resume=require, but {folder} has no complete checkpoint",
            "there is nothing to continue from",
            "checkpoint.resume=auto to start anew, or the right run_dir=",
        )
    if own:
        return Start(own[-1], resumes=True)
    if config.checkpoint.init_from:
        return Start(layout.find(Path(config.checkpoint.init_from)), resumes=False)
    return None


def check_fits(start: Start, config: Config, vocab_size: int, corpus: Corpus) -> list[str]:
    """Compare a checkpoint with the run that wants to load it, before anything long is done.

    Returns notes for the user: what may differ but is not to differ unnoticed. Raises InputError
    with every mismatch.
    """
    checkpoint = start.checkpoint
    before, state = load_config(checkpoint.path / layout.CONFIG), checkpoint.state()
    problems = [
        *_other_weights(checkpoint, before, config),
        *_other_text(checkpoint, state, vocab_size, corpus),
        *_other_loops(checkpoint, before, config, start.resumes),
        *_other_rates(checkpoint, before, config, start.resumes),
    ]
    if problems:
        raise InputError(problems)
    if not start.resumes:
        return list(_gates_that_differ(checkpoint, before, config))
    notes = []
    if state.corpus != corpus.fingerprint:
        notes.append(
            f"warning: the corpus is {corpus.fingerprint}, steps up to {checkpoint.step} were "
            f"trained on {state.corpus}: from here on it is other data"
        )
    return notes + [f"changed since step {checkpoint.step}: {c}" for c in changes(before, config)]


def _other_weights(checkpoint: Checkpoint, before: Config, config: Config) -> Iterator[Problem]:
    ours, theirs = config.model, before.model
    for name in _SHAPE:
        wanted, found = getattr(ours, name), getattr(theirs, name)
        if name in ("gate", "kv_sharing") and not (ours.num_loops > 1 and theirs.num_loops > 1):
            continue
        if wanted != found:
            yield Problem(
                f"model.{name}={wanted}, the checkpoint {checkpoint.path} has {found}",
                "its weights have another shape or meaning",
                f"model.{name}={found}, or another run_dir= to train this model from the start",
            )


def _other_text(
    checkpoint: Checkpoint, state: CheckpointState, vocab_size: int, corpus: Corpus
) -> Iterator[Problem]:
    if state.vocab_size != vocab_size:
        yield Problem(
            f"the vocabulary has {vocab_size} rows, "
            f"the checkpoint {checkpoint.path} {state.vocab_size}",
            "the embedding would not fit",
            f"model.vocab_size={state.vocab_size} with the tokenizer it was trained with",
        )
    if state.tokenizer_hash != corpus.tokenizer_hash:
        yield Problem(
            f"the corpus was tokenised by {corpus.tokenizer_hash}, "
            f"the checkpoint {checkpoint.path} was trained on {state.tokenizer_hash}",
            "the same ids mean other text",
            f"data.build.tokenizer={state.tokenizer_path}, or another run_dir=",
        )


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
    gates_are_new = ours.has_gates and not theirs.has_gates and not resumes
    if gates_are_new and config.checkpoint.init_optimizer and not sharded:
        yield Problem(
            "checkpoint.init_optimizer=true parallel.distributed_optimizer=false "
            f"with new gates (num_loops={theirs.num_loops} -> {ours.num_loops})",
            "megatron-core's plain bf16 optimizer saves its state without names, "
            "so that nothing can be added to it",
            "parallel.distributed_optimizer=true, or checkpoint.init_optimizer=false",
        )


def _other_rates(
    checkpoint: Checkpoint, before: Config, config: Config, resumes: bool
) -> Iterator[Problem]:
    """Adam's state is saved by groups of one rate, which megatron-core cannot regroup."""
    if not (resumes or config.checkpoint.init_optimizer):
        return
    fix = f"checkpoint.init_from={checkpoint.path} run_dir=ANOTHER_FOLDER for the weights alone"
    ours, theirs = (rate_scales(c.model, c.optim) for c in (config, before))
    for kind in (k for k in ours if ours[k] != theirs[k]):
        yield Problem(
            f"each {kind} learns at {ours[kind]:g} * optim.lr, "
            f"in the checkpoint {checkpoint.path} at {theirs[kind]:g} * optim.lr",
            "the optimizer's state is kept by groups of one rate: optim.base_hidden_size, "
            "optim.embedding_lr_scale, optim.head_lr_scale and model.residual_scale stay",
            f"the values of {checkpoint.path / layout.CONFIG}, or {fix}",
        )


def _gates_that_differ(checkpoint: Checkpoint, before: Config, config: Config) -> Iterator[str]:
    ours, theirs, path = config.model, before.model, checkpoint.path
    if ours.has_gates and not theirs.has_gates:
        yield (
            f"warning: {path} has no gates (num_loops={theirs.num_loops}): they start at g = 0.5"
        )
    elif theirs.has_gates and not ours.has_gates:
        yield f"the gates of {path} are dropped: num_loops={ours.num_loops} has none"


def load(checkpoint: Checkpoint, network: Any, optimizer: Any | None, config: Config) -> None:
    """Load weights, and the optimizer's state if one is given. All ranks must call it.

    Gates that the checkpoint does not have keep their initial values (and zero moments), and
    delayed scaling starts its history anew where the checkpoint was saved in another precision.
    """
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.serialization import load_sharded_metadata

    _verify_together(checkpoint, config)
    shards = sharded_state(network, optimizer, is_loading=True)
    known = load_sharded_metadata(str(checkpoint.path))
    _keep_new_gates(shards, known)
    _drop_new_histories(shards["model"], known)
    # What `load` returns, not what was passed in: only that is right in every layout.
    loaded = dist_checkpointing.load(shards, str(checkpoint.path))
    model = loaded["model"]
    restore(network, {name: model.pop(name) for name in list(model) if is_history(name)})
    weights = {name.removeprefix("model."): value for name, value in model.items()}
    missing, unexpected = network.load_state_dict(weights, strict=False)
    missing = [n for n in missing if not is_history(n)]
    if missing or unexpected:
        raise RuntimeError(f"{checkpoint.path}: missing {missing}, unexpected {unexpected}")
    if optimizer is not None:
        with torch.no_grad():
            optimizer.load_state_dict(loaded["optimizer"])


def _keep_new_gates(shards: dict[str, Any], known: Any) -> None:
    """Replace requests for gates that the checkpoint lacks by their present weights and zero
    moments."""
    from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace
    from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedTensor

    present = {
        (value.key, value.global_offset): value.data
        for value in shards["model"].values()
        if isinstance(value, ShardedTensor)
    }

    def keep(value: Any) -> Any:
        is_there = not isinstance(value, ShardedTensor) or value.key in known
        if is_there or "plt_gate" not in value.key:
            return value
        # optimizer.state.KIND.model.NAME
        kind, _, name = value.key.removeprefix("optimizer.state.").partition(".model.")
        if not name:
            return LocalNonpersistentObject(value.data)
        weight = present["model." + name, value.global_offset].detach().float()
        is_moment = kind.startswith("exp_avg")
        return LocalNonpersistentObject(torch.zeros_like(weight) if is_moment else weight.clone())

    dict_list_map_inplace(keep, shards)


def _drop_new_histories(model: dict[str, Any], known: Any) -> None:
    """Do not ask for a history of FP8 scaling that the checkpoint lacks."""
    for name in [n for n in model if is_history(n) and model[n].unique_key not in known]:
        del model[name]


def _verify_together(checkpoint: Checkpoint, config: Config) -> None:
    """Every rank hashes its part; a fault that one finds is raised on all."""
    fault: InputError | None = None
    try:
        layout.verify(checkpoint, config.checkpoint.verify, dist.get_rank(), dist.get_world_size())
    except InputError as error:
        fault = error
    faults: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(faults, fault.problems if fault else None)
    found = next((f for f in faults if f), None)
    if found:
        raise InputError(found)
