"""Silent errors: what has to be the same on several ranks, or twice on one, and is not."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from loopcoder.data.loader import StepData
from loopcoder.errors import ProcessLost
from loopcoder.parallel.fingerprint import differing, fingerprints
from loopcoder.train.state import TrainState
from loopcoder.train.step import forward_backward

Event = Callable[..., None]


class SilentError(ProcessLost):
    """A device computed or kept something wrong; the same command continues before it."""


def compare_replicas(state: TrainState, step: int, event: Event) -> None:
    """Compare what data-parallel replicas must have in common: weights, and where it is not split
    over them the optimizer's state. All ranks call it, between two steps.

    Raises:
        SilentError: on all ranks, naming those that differ from most.
    """
    if dist.get_world_size(state.ranks.groups.dp_cp) == 1:
        return
    if state.ddp.ddp_config.overlap_param_gather:
        state.ddp.start_param_sync(force_sync=True)
    named = dict(_replicated(state))
    found = differing(fingerprints(list(named.values())), state.ranks.groups.dp_cp)
    names = list(named)
    mine = [(names[index], ranks) for index, ranks in found]
    _refuse(mine, state, step, event, "replicas_differ", "data-parallel replicas have other")


def replay(state: TrainState, data: StepData, domains: int, event: Event, loops: int) -> None:
    """Compute this rank's gradients of a step twice, and compare them bit for bit. All ranks call
    it, before the step; it leaves the gradients as they are at the start of one.

    Args:
        loops: that the step runs.

    Raises:
        SilentError: on all ranks, naming those whose gradients differ.
    """
    first, again = (_own_gradients(state, data, domains, loops) for _ in range(2))
    rank = dist.get_rank()
    mine = [("gradients", [rank])] if not torch.equal(first, again) else []
    _refuse(
        mine, state, data.after.step, event, "replay_differs", "a step computed twice has other"
    )


def _own_gradients(state: TrainState, data: StepData, domains: int, loops: int) -> Tensor:
    """Return fingerprints of the gradients of this rank's microbatches, before they are reduced."""
    # chunks of fewer loops than the model has get copies of the network's config
    schedules: list[Any] = [state.config, *(chunk.config for chunk in state.chunks)]
    finish = state.config.finalize_model_grads_func
    ddp = state.ddp.ddp_config
    overlaps = ddp.overlap_grad_reduce
    for schedule in schedules:
        schedule.finalize_model_grads_func = lambda *_, **__: None
    # ddp.no_sync() does not last: zeroing the gradients ends it.
    ddp.overlap_grad_reduce = False
    try:
        forward_backward(state, data.microbatches, domains, loops=loops)
    finally:
        for schedule in schedules:
            schedule.finalize_model_grads_func = finish
        ddp.overlap_grad_reduce = overlaps
    return fingerprints([p.main_grad for p in state.network.parameters()])


def _replicated(state: TrainState) -> Iterable[tuple[str, Tensor]]:
    yield from state.network.named_parameters()
    if state.ddp.ddp_config.use_distributed_optimizer:
        return
    for part, inner in enumerate(getattr(state.optimizer, "chained_optimizers", [state.optimizer])):
        parameters = [p for group in inner.optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            kept = inner.optimizer.state.get(parameter, {})
            for kind in ("exp_avg", "exp_avg_sq"):
                if kind in kept:
                    yield f"{kind} of parameter {index} of optimizer {part}", kept[kind]


def _refuse(
    mine: list[tuple[str, list[int]]],
    state: TrainState,
    step: int,
    event: Event,
    kind: str,
    what: str,
) -> None:
    """Raise on all ranks if any of them found something."""
    flag = torch.tensor([len(mine)], device=state.ranks.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    if not flag.item():
        return
    everything: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everything, (socket.gethostname(), mine))
    found = [item for _, items in everything for item in items]
    ranks = sorted({rank for _, named in found for rank in named})
    name = found[0][0]
    hosts = {rank: everything[rank][0] for rank in ranks}
    event(kind, step=step, ranks=ranks, hosts=sorted(set(hosts.values())), first=name)
    listed = ", ".join(f"rank {rank} on {host}" for rank, host in hosts.items())
    raise SilentError.of(
        f"step {step}: {what} {name}: {listed}",
        "a device or its memory made an error that nothing else reports; nothing was saved "
        "after it",
        "start the same command again, without that machine if it comes again",
    )
