"""Where the ranks of a world meet: the store that rank 0 or torchrun keeps."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch.distributed as dist

from loopcoder.errors import InputError, ProcessLost
from loopcoder.network import route_to, wait_for

_UNREACHED_S = 20.0
"""After which it is said at the latest why rank 0 is not reached."""


def common_store(
    rank: int, timeout_s: float, report_after_s: float, look: Callable[[], None]
) -> Any:
    """Return the store of the world given by MASTER_ADDR and MASTER_PORT, which rank 0 or torchrun
    keeps.

    Args:
        timeout_s: How long to wait for whoever keeps it, and the store's own timeout.
        report_after_s: After how long to say at the latest why it is not reached.
        look: Is called while waiting; what it raises ends that.

    Raises:
        InputError: rank 0 does not know its own name.
        ProcessLost: rank 0 is not reached.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    keeps_it = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
    if keeps_it:
        _refuse_unknown(host)
    else:
        report = partial(_say_unreached, rank)
        patience_s = min(report_after_s, _UNREACHED_S)
        fault = wait_for(host, port, timeout_s, patience_s, report, look)
        if fault is not None:
            raise _rank_0_lost(rank, fault, timeout_s)
    try:
        return dist.TCPStore(
            host,
            port,
            is_master=keeps_it,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,  # `meet` waits, and says for whom
            multi_tenant=keeps_it,
        )
    except dist.DistError as error:
        fault = f"{host}:{port}: {str(error).partition(chr(10))[0]}"
        raise _rank_0_lost(rank, fault, timeout_s) from error


def _refuse_unknown(host: str) -> None:
    """Raise InputError where the node on which the ranks are to meet does not know its own name."""
    try:
        route_to(host)
    except OSError as error:
        raise InputError.of(
            f"MASTER_ADDR={host} on {socket.gethostname()}",
            f"it does not resolve on the node of rank 0 itself ({error.strerror})",
            "export MASTER_ADDR=ADDRESS on all nodes, with an address by which they reach rank 0",
        ) from error


def _say_unreached(rank: int, fault: str) -> None:
    print(
        f"loopcoder: rank {rank} ({socket.gethostname()}) waits for rank 0: {fault}",
        file=sys.stderr,
        flush=True,
    )


def _rank_0_lost(rank: int, fault: str, timeout_s: float) -> ProcessLost:
    return ProcessLost.of(
        f"rank {rank} ({socket.gethostname()}) has not reached rank 0: {fault}, after "
        f"{timeout_s:g} s (parallel.timeout_s)",
        "all ranks meet where rank 0 is",
        "see to the node of rank 0 and the network, or export MASTER_ADDR=ADDRESS on all nodes; "
        "then start the same command again",
    )
