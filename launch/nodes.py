"""Several machines, on each of which the same command is started: where and how they meet."""

from __future__ import annotations

import re
import socket
import sys
import time
from collections.abc import Mapping

import psutil

from loopcoder.config.schema import ParallelConfig
from loopcoder.errors import InputError, ProcessLost
from loopcoder.network import Route, is_here, is_loopback, route_to, wait_for

_REPORT_S = 20.0
"""After which it is said at the latest who is waited for."""
_STUCK_S = 30.0
"""That torchrun gets to see that its workers have failed."""
_OTHERS_END_S = 330.0
"""That it gets when they are done: it waits 300 s for the workers of other nodes."""


def meeting_point(parallel: ParallelConfig) -> tuple[str, int]:
    """Return host and port of `parallel.rendezvous`.

    Raises InputError: it is missing or no HOST:PORT.
    """
    found = re.fullmatch(r"\[?(.+?)\]?:(\d{1,5})", parallel.rendezvous or "")
    if found is None or not 0 < int(found[2]) < 1 << 16:
        raise InputError.of(
            f"parallel.nodes={parallel.nodes} parallel.rendezvous={parallel.rendezvous or 'null'}",
            "the nodes have to know where they meet: one of them, and a port that is free there",
            "parallel.rendezvous=HOST:29500, the same on all nodes; torchrun and srun need neither",
        )
    return found[1], int(found[2])


def arguments_of_torchrun(parallel: ParallelConfig) -> list[str]:
    """Return how torchrun meets the other nodes, once the place where they meet is there.

    Raises:
        InputError: the place is none that the others can reach.
        ProcessLost: it has not come within `parallel.timeout_s`.
    """
    if parallel.nodes == 1:
        # not by this machine's name, which may not resolve
        return ["--standalone", "--local-addr=127.0.0.1"]
    host, port = meeting_point(parallel)
    is_host, route = place_of(host, port)
    timeout_s = f"{parallel.timeout_s:.0f}"
    if not is_host:
        report_after_s = min(parallel.report_after_s, _REPORT_S)
        fault = wait_for(host, port, parallel.timeout_s, report_after_s, _say)
        if fault is not None:
            raise ProcessLost.of(
                f"{fault}, after {timeout_s} s (parallel.timeout_s)",
                "it is where the nodes meet (parallel.rendezvous)",
                "see to that node and the network; then start the same command on all nodes",
            )
    return [
        f"--nnodes={parallel.nodes}",
        "--rdzv-backend=c10d",
        "--rdzv-id=loopcoder",
        f"--rdzv-endpoint={host}:{port}",
        f"--rdzv-conf=is_host={int(is_host)},join_timeout={timeout_s}",
        f"--local-addr={route.address}",
    ]


def place_of(host: str, port: int) -> tuple[bool, Route]:
    """Return whether the nodes meet here, and how this one is reached.

    Raises:
        InputError: there is no way to that place, or none that others can take.
    """
    try:
        is_host, route = is_here(host), route_to(host)
    except OSError as error:
        raise InputError.of(
            f"parallel.rendezvous={host}:{port} on {socket.gethostname()}",
            f"there is no way to it ({error.strerror})",
            "an address, or a name that all nodes resolve",
        ) from error
    if is_loopback(route.address):
        raise InputError.of(
            f"parallel.rendezvous={host}:{port}, which is {route.address} on "
            f"{socket.gethostname()}",
            "that is the loopback, by which no other node reaches this one",
            "parallel.rendezvous=ADDRESS:PORT with the address by which the others reach it",
        )
    return is_host, route


def refuse_other_launch(parallel: ParallelConfig, environ: Mapping[str, str]) -> None:
    """Raise InputError where a launcher has started other processes than the config asks for.

    Args:
        environ: With what torchrun or srun says; what they do not say is not compared.
    """
    world, local = (int(environ.get(name, 0)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    asked = parallel.nproc_per_node
    if asked is not None and local and local != asked:
        raise InputError.of(
            f"parallel.nproc_per_node={asked}, and the launcher has started {local} here",
            "torchrun and srun decide how many processes there are",
            f"leave parallel.nproc_per_node out; or torchrun --nproc-per-node={asked}, "
            f"srun --ntasks-per-node={asked}",
        )
    if parallel.nodes > 1 and local and world != parallel.nodes * local:
        raise InputError.of(
            f"parallel.nodes={parallel.nodes}, and the launcher has started {world} processes, "
            f"{local} of them here",
            "torchrun and srun decide on how many nodes there are processes",
            f"leave parallel.nodes out; or torchrun --nnodes={parallel.nodes}, "
            f"srun --nodes={parallel.nodes}",
        )


class Attendance:
    """Watches torchrun on one of several nodes: says that it waits for the others, and ends it
    when it hangs although its workers have ended. Its store may be on a node that is gone."""

    def __init__(self, parallel: ParallelConfig):
        self._parallel, self._began = parallel, time.monotonic()
        self._seen, self._said = False, False
        self._alone_since: float | None = None

    def look(
        self, torchrun: psutil.Process, workers: list[psutil.Process], *, failed: bool
    ) -> None:
        """Look at it, every second or so.

        Args:
            torchrun: Of this node.
            workers: Those that it has now.
            failed: One of them has ended with another code than 0.
        """
        now = time.monotonic()
        self._seen = self._seen or bool(workers)
        if workers or not self._seen:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        elif now - self._alone_since > (_STUCK_S if failed else _OTHERS_END_S):
            torchrun.kill()
        waits = not self._seen and now - self._began > min(self._parallel.report_after_s, _REPORT_S)
        if waits and not self._said:
            self._said = True
            _say(
                f"not all of {self._parallel.nodes} nodes have come to "
                f"{self._parallel.rendezvous} yet; the same command has to run on each"
            )


def _say(fault: str) -> None:
    text = f"loopcoder: {socket.gethostname()} waits for the other nodes: {fault}"
    print(text, file=sys.stderr, flush=True)
