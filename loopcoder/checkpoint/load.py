"""Load a checkpoint into a run of any layout."""

from __future__ import annotations

from typing import Any

import torch

from loopcoder.checkpoint.digest import check_loaded, digest_of, is_comparable, read_digest
from loopcoder.checkpoint.format import Checkpoint, corrupt
from loopcoder.checkpoint.fp8_history import is_history, restore
from loopcoder.checkpoint.save import sharded_state
from loopcoder.checkpoint.unpickled import nothing_runs
from loopcoder.checkpoint.verify import faults_together
from loopcoder.config.schema import Config

_GATES = ("plt_gate", "exit_gate")
"""In the names of parameters that a checkpoint may lack: of layers, and of `objective.exit`."""


def load(
    checkpoint: Checkpoint,
    network: Any,
    optimizer: Any | None,
    config: Config,
    *,
    is_verified: bool = False,
) -> None:
    """Load weights, and the optimizer's state if one is given. All ranks must call it.

    Gates that the checkpoint does not have keep their initial values (and zero moments), and
    delayed scaling starts its history anew where the checkpoint was saved in another precision.

    Args:
        is_verified: It was compared with its manifest.

    Raises:
        InputError: it is damaged, wants to run something, or what was loaded is not what was saved.
    """
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.serialization import load_sharded_metadata

    if not is_verified and (facts := faults_together(checkpoint, config.checkpoint.verify)):
        raise corrupt(checkpoint, facts)
    shards = sharded_state(network, optimizer, is_loading=True)
    with nothing_runs(checkpoint):
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
    _check_digest(checkpoint, network, optimizer, config)


def _check_digest(
    checkpoint: Checkpoint, network: Any, optimizer: Any | None, config: Config
) -> None:
    """Compare what is in the model and the optimizer now with what was saved, where that has to be
    the same."""
    saved = read_digest(checkpoint) if config.checkpoint.digest else None
    if saved is not None and is_comparable(checkpoint, config):
        shards = sharded_state(network, optimizer, is_loading=False)
        check_loaded(checkpoint, saved, digest_of(shards, optimizer))


def _keep_new_gates(shards: dict[str, Any], known: Any) -> None:
    """Replace requests for gates that the checkpoint lacks by their present weights and zero
    moments."""
    from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace
    from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedTensor

    def keep(value: Any) -> Any:
        is_there = not isinstance(value, ShardedTensor) or value.key in known
        if is_there or not any(gate in value.key for gate in _GATES):
            return value
        # optimizer.state.KIND.model.NAME
        kind, _, name = value.key.removeprefix("optimizer.state.").partition(".model.")
        if not name:
            return LocalNonpersistentObject(value.data)
        is_moment = kind.startswith("exp_avg")
        return LocalNonpersistentObject(torch.zeros_like(value.data) if is_moment else value.data)

    dict_list_map_inplace(keep, shards)


def _drop_new_histories(model: dict[str, Any], known: Any) -> None:
    """Do not ask for a history of FP8 scaling that the checkpoint lacks."""
    for name in [n for n in model if is_history(n) and model[n].unique_key not in known]:
        del model[name]
