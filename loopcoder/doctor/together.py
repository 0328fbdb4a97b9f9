"""What the nodes of a job find out together, through the store of their world: who has come, what
differs, whether they see the same `run_dir`, what their clocks show."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from loopcoder.doctor.clock import clock_finding
from loopcoder.doctor.compare import differences
from loopcoder.doctor.disks import existing
from loopcoder.doctor.findings import Finding, Node, Seen
from loopcoder.parallel.handshake import ALL, Exchange

_SEEN_WITHIN_S = 5.0
"""A network disk shows a new file to other nodes after some seconds."""
_LOOK_EVERY_S = 0.2
_READ_LATE_S = 0.1
"""How much later than another one a rank may read what rank 0 tells, besides the pause between two
looks."""


def gather(exchange: Exchange, key: str, node: Node | None) -> dict[str, Node]:
    """Return what was seen on every node by its key, in the order of ranks. All ranks must call it.

    Args:
        key: Of this machine.
        node: Of this machine, on one rank of it.
    """
    shown = json.dumps([key, None if node is None else node.to_json()])
    told = exchange.settle("doctor", shown, list)
    return {key: Node.from_json(one) for key, one in told if one is not None}


def compare_nodes(exchange: Exchange, name: str | None, run_dir: str | None, seen: Seen) -> None:
    """Add what the nodes' clocks show, and whether they see one `run_dir`. All ranks must call it.

    Args:
        name: Of this machine, on one rank of it; None on the others.
        run_dir: Of the run; None: nothing is looked at.
        seen: Gets the same findings on all ranks.
    """
    seen.findings += _clocks(exchange, name)
    seen.findings += _shared(exchange, name, run_dir)


def compare_all(nodes: Sequence[Node], seen: Seen) -> None:
    """Add what differs between nodes, or that nothing does."""
    found = list(differences(nodes))
    seen.findings += found
    if not found:
        seen.ok("nodes", f"{len(nodes)} with the same versions and GPUs")


def _clocks(exchange: Exchange, name: str | None) -> list[Finding]:
    """Compare what the clocks show at the moment at which all read the same word of rank 0."""
    exchange.settle("doctor/now", json.dumps(None), lambda told: None)
    shown = [name, now()]
    told = exchange.settle("doctor/clock", json.dumps(shown), list)
    first = told[0][1]
    uncertain_s = _READ_LATE_S + exchange.pause_s
    others = [(node, clock - first) for node, clock in told[1:] if node is not None]
    return [clock_finding(node, ahead_s, uncertain_s) for node, ahead_s in others]


def now() -> float:
    """Return what the clock of this machine shows, in seconds since 1970."""
    return time.time()


def _shared(exchange: Exchange, name: str | None, run_dir: str | None) -> list[Finding]:
    """Let rank 0 write a file where the run would write, and the others look for it."""
    token: Path | None = None
    if exchange.me.rank == 0:
        token = _token(run_dir)
        exchange.tell("doctor/token", json.dumps(None if token is None else str(token)), by=ALL)
    try:
        place = json.loads(exchange.read("doctor/token", ALL))
        # without a run_dir its disk hangs here, and is not touched
        is_seen = name is None or place is None or (run_dir is not None and _appears(Path(place)))
        told = exchange.settle("doctor/blind", json.dumps(None if is_seen else name), list)
    finally:
        if token is not None:
            with suppress(OSError):
                token.unlink()
    if place is None:
        return []
    folder = str(Path(place).parent)
    nodes = [node for node in told if node is not None]
    if not nodes:
        return [Finding("shared run_dir", "ok", f"all nodes see {folder}")]
    return [
        Finding(
            "shared run_dir",
            "error",
            f"what the first node writes in {folder} is not seen by {', '.join(nodes)}",
            "each node would write its part of a checkpoint to a disk of its own",
            "mount one disk there on all nodes, or run_dir=FOLDER of a disk that all of them share",
        )
    ]


def _token(run_dir: str | None) -> Path | None:
    """Write a file where the run would; None: nothing can be written, which its own check says."""
    if run_dir is None:
        return None
    try:
        path = existing(Path(run_dir)) / f".loopcoder-doctor-{uuid.uuid4().hex}"
        path.touch()
    except OSError:
        return None
    return path


def _appears(path: Path) -> bool:
    until = time.monotonic() + _SEEN_WITHIN_S
    while True:
        with suppress(OSError):
            os.listdir(path.parent)  # noqa: PTH208 - makes NFS ask its server again
        if path.exists():
            return True
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK_EVERY_S)
