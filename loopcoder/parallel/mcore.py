"""megatron-core's process groups: the only file that initialises and reads its global state."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from loopcoder.config.schema import ParallelConfig
from loopcoder.parallel import cpu
from loopcoder.parallel.departed import Departed
from loopcoder.parallel.handshake import shake_hands
from loopcoder.parallel.meeting import common_store
from loopcoder.parallel.peers import Peers, meet

_LATER_S = 60.0


@dataclass(frozen=True)
class Ranks:
    """Where this process stands in every dimension of the layout."""

    rank: int
    world_size: int
    tp_rank: int
    dp_rank: int
    dp_size: int
    pp_rank: int
    device: torch.device
    groups: Any
    """megatron-core's ProcessGroupCollection."""

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0


def prepare() -> None:
    """Make megatron-core run on this machine, with a GPU or without, and quietly.

    Call it before anything imports megatron-core. It is silenced on the packages that it misses at
    every import: we resolve those ourselves.
    """
    for module in ("megatron", "torch.distributed"):
        warnings.filterwarnings("ignore", module=module)
    warnings.filterwarnings("ignore", message="MLP requires ffn_hidden_size")
    for name in ("megatron.core", "torch.distributed.checkpoint", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    cpu.install()


def start_processes(
    timeout_s: float = 1800,
    report_after_s: float = 300,
    alike: Callable[[], Mapping[str, str]] = dict,
) -> Peers | None:
    """Join the world given by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    NCCL or gloo, by what is there. A world of one needs no address and opens no port.

    Args:
        timeout_s: How long to wait for a rank, here and in every collective.
        report_after_s: After how long to say who has not come.
        alike: Says what has to be the same on all machines, by its name; is called on one rank of
            each.

    Returns:
        what the ranks tell of each other; None: there is one.

    Raises:
        InputError: ranks differ, or were given a network interface that does not connect them.
        ProcessLost: a rank has not come, has ended before all had come, or is not reached.
    """
    size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    peers = None
    if size == 1:
        store: Any = dist.HashStore()
    else:
        departed = Departed()
        store = common_store(rank, timeout_s, report_after_s, departed.look)
        peers = meet(store, rank, size, timeout_s, report_after_s, departed.look)
        shake_hands(peers, alike, timeout_s)
    options: dict[str, Any] = {"store": store, "rank": rank, "world_size": size}
    # NCCL's watchdog kills a process without a word: whoever watches it comes first
    options["timeout"] = timedelta(seconds=timeout_s + _LATER_S)
    if torch.cuda.is_available():
        # A launcher may show each process one GPU only, which is then number 0 whatever its rank.
        index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device, **options)
    else:
        dist.init_process_group("gloo", **options)
    return peers


def start_alone() -> None:
    """Start a world of this process alone, whatever launcher variables are set."""
    store: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        dist.init_process_group("nccl", device_id=device, **store)
    else:
        dist.init_process_group("gloo", **store)


def initialise(parallel: ParallelConfig, seed: int) -> Ranks:
    """Build the process groups of a layout in the running world, replacing those of another one."""
    cpu.install()
    from megatron.core import parallel_state as state
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    sizes = (parallel.tp, parallel.pp, parallel.cp)
    if state.model_parallel_is_initialized() and sizes != _sizes(state):
        state.destroy_model_parallel()
        _close_groups()
    if not state.model_parallel_is_initialized():
        state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tp,
            pipeline_model_parallel_size=parallel.pp,
            context_parallel_size=parallel.cp,
        )
    # No dropout and our own initialisation: the streams are never drawn from, but megatron expects
    # them.
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    return Ranks(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        tp_rank=state.get_tensor_model_parallel_rank(),
        dp_rank=state.get_data_parallel_rank(),
        dp_size=state.get_data_parallel_world_size(),
        pp_rank=state.get_pipeline_model_parallel_rank(),
        device=cpu.device(),
        groups=ProcessGroupCollection.use_mpu_process_groups(),
    )


def shutdown() -> None:
    """Leave the world."""
    if dist.is_initialized():
        state: Any = sys.modules.get("megatron.core.parallel_state")
        if state is not None:  # importing megatron only to leave would take seconds
            state.destroy_model_parallel()
        dist.destroy_process_group()


def _sizes(state: Any) -> tuple[int, int, int]:
    return (
        state.get_tensor_model_parallel_world_size(),
        state.get_pipeline_model_parallel_world_size(),
        state.get_context_parallel_world_size(),
    )


def _close_groups() -> None:
    """Close all groups but the world: megatron forgets its own without that, and each of gloo keeps
    sockets, and threads that wake a hundred times a second as long as a model holds the group."""
    for group in [g for g in distributed_c10d._world.pg_map if g is not dist.group.WORLD]:
        dist.destroy_process_group(group)
