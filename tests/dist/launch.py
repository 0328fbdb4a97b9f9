"""Run a function in several real gloo processes, started once for many cases."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp
from torch.distributed import TCPStore

from loopcoder.storage.process import use_short_socket_paths


def _child(
    rank: int,
    size: int,
    port: int,
    threads: int,
    function: Callable[..., Any],
    args: tuple,
    out: Any,
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",  # the parent's, as under torchrun
        TORCHELASTIC_RESTART_COUNT="0",
    )
    import torch

    torch.set_num_threads(threads)
    from loopcoder.parallel import mcore

    mcore.start_processes(timeout_s=120)
    gc.freeze()  # megatron collects at every load, which takes 0.3 s over all that is imported
    try:
        out.put((rank, True, function(rank, *args)))
    except BaseException:
        out.put((rank, False, traceback.format_exc()))
    finally:
        mcore.shutdown()


def in_processes(
    size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 600
) -> list[Any]:
    """Call function(rank, *args) in `size` processes of one world, and return the results by rank.

    A failing rank's traceback is raised here. `function` and `args` must be picklable.
    """
    # Held from here on: a port that was only looked up can be another's when the ranks need it.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    use_short_socket_paths()  # tensors in the queue go through sockets
    context = mp.get_context("spawn")
    out = context.Queue()
    processes = [
        context.Process(
            target=_child, args=(r, size, store.port, 1, function, args, out), daemon=True
        )
        for r in range(size)
    ]
    for process in processes:
        process.start()
    results: dict[int, Any] = {}
    failures = []
    try:
        for _ in range(size):
            rank, ok, value = out.get(timeout=timeout_s)
            if not ok:
                failures.append(f"rank {rank}:\n{value}")
                break
            results[rank] = value
    finally:
        for process in processes:
            if failures:
                process.kill()
            process.join(30)
    if failures:
        raise AssertionError("\n".join(failures))
    return [results[r] for r in range(size)]
