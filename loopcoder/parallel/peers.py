"""What the ranks of a world tell of themselves, so that who waits can say for whom.

Collectives say nothing of who is missing. Through the store of the world, which needs no
collective, every rank tells where it stands; one that has waited long reads what others told.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException  # a BaseException

from loopcoder.errors import ProcessLost
from loopcoder.parallel.patient import PatientStore, StoreSilent

END = "the end"
"""Phase of a rank that has trained all and may end at any moment."""
SILENT_S = 15.0
"""Seconds after which a rank that tells nothing new is called silent: it tells every second."""
_STORE_S = 5.0
"""Seconds that the store gets to answer: its node may be gone without a word."""
_LOST, _ALL_CAME = "loopcoder/lost", "loopcoder/all_came"
_LOST_TEXTS = (
    "closed by peer",
    "reset by peer",
    "broken pipe",
    "timed out waiting",
    "connection refused",
    "socket closed",
    "remote process",
)
"""What gloo and torch's sockets say when a rank is gone."""


@dataclass(frozen=True)
class Peer:
    """What a rank has told last."""

    rank: int
    host: str
    pid: int
    machine: str
    """Tells machines, and containers with process ids of their own, apart."""
    phase: str = "start"
    step: int = 0
    beat: int = 0
    """Grows with everything that is told."""
    left: str | None = None
    """Why it has ended, in one line; None: it has not said that it has."""
    code: int = 0
    """Exit code with which it has ended."""

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, process {self.pid})"

    @property
    def is_dead(self) -> bool:
        """Whether its process is gone; False where that cannot be seen from here."""
        if self.machine != _machine():
            return False
        try:
            return psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


def myself(rank: int) -> Peer:
    """Return what this process tells at first."""
    return Peer(rank, socket.gethostname(), os.getpid(), _machine())


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    with suppress(OSError):
        return f"{boot.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


class Peers:
    """The ranks of a world as one of them sees them. Not for several threads at once."""

    def __init__(self, store: Any, rank: int, size: int):
        """
        Args:
            store: The world's; it may be waited on elsewhere, so it is cloned.
        """
        self.store, self.size = PatientStore(store.clone(), _STORE_S), size
        self.me = myself(rank)
        self._heard: dict[int, tuple[int, float]] = {}
        """By rank: its newest beat that was read, and when it was new here."""

    def tell(self, phase: str, step: int, *, left: str | None = None, code: int = 0) -> None:
        """Say where this rank stands, or why it leaves and with which exit code: for good."""
        if self.me.left is not None:
            return
        fields = asdict(self.me) | {"phase": phase, "step": step, "left": left, "code": code}
        self.me = Peer(**(fields | {"beat": self.me.beat + 1}))
        self.store.set(_key(self.me.rank), json.dumps(asdict(self.me)))

    def all_came(self) -> bool:
        """Say whether all ranks are there; rank 0 counts, so that the others ask for one key."""
        try:
            if self.me.rank == 0 and not self._missing():
                self.store.set(_ALL_CAME, "yes")
            return self.store.check([_ALL_CAME])
        except StoreSilent:
            return False

    def absent(self) -> str:
        """Say which ranks have not come."""
        try:
            names = [str(rank) for rank in self._missing()]
        except StoreSilent:
            return self.silence()
        shown = ", ".join(names[:16]) + (", ..." if len(names) > 16 else "")
        return f"{len(names)} of {self.size} ranks have not come: {shown}"

    def _missing(self) -> list[int]:
        return [r for r in range(self.size) if not self.store.check([_key(r)])]

    def tell_lost(self, why: str) -> None:
        """Say to all that the world is lost, and why: not everybody can see it."""
        self.store.set(_LOST, why)

    def told_lost(self) -> str | None:
        """Return why the world is lost, if somebody has said so."""
        return self.store.get(_LOST).decode() if self.store.check([_LOST]) else None

    def silence(self) -> str:
        """Say for how long the store has not answered, after it raised StoreSilent."""
        where = os.environ.get("MASTER_ADDR")
        return f"the node of rank 0 ({where}) has not answered for {self.store.silent_s:.0f} s"

    def ask(self) -> list[Peer]:
        """Return what the other ranks told last; one that never came is left out."""
        found = []
        for rank in range(self.size):
            if rank != self.me.rank and self.store.check([_key(rank)]):
                peer = Peer(**json.loads(self.store.get(_key(rank))))
                if self._heard.get(rank, (-1, 0.0))[0] != peer.beat:
                    self._heard[rank] = (peer.beat, time.monotonic())
                found.append(peer)
        return found

    def gone(self) -> list[str]:
        """Say which ranks have ended, each with its host, process and reason."""
        ended = []
        for peer in self.ask():
            if peer.left is not None:
                ended.append(f"{peer} has ended: {peer.left}")
            elif peer.phase != END and peer.is_dead:
                ended.append(f"{peer} was killed or crashed in {peer.phase} of step {peer.step}")
        return ended

    def code_of_the_gone(self) -> int | None:
        """Return the exit code of the first rank that said why it has ended; None: nobody did."""
        return next((peer.code for peer in self.ask() if peer.left is not None), None)

    def waited_for(self) -> list[str]:
        """Say of every rank for which this one may be waiting why; call it twice, at least
        SILENT_S apart, to know who is silent."""
        peers = self.ask()
        known = {peer.rank for peer in peers} | {self.me.rank}
        missing = [f"rank {r} has never come" for r in range(self.size) if r not in known]
        silent, elsewhere = [], []
        for peer in peers:
            quiet = time.monotonic() - self._heard[peer.rank][1]
            where = f"{peer.phase} of step {peer.step}"
            if peer.left is not None or peer.is_dead:
                continue
            if quiet > SILENT_S:
                silent.append(f"{peer} has been silent for {quiet:.0f} s, last in {where}")
            elif (peer.step, peer.phase) != (self.me.step, self.me.phase):
                elsewhere.append(f"{peer} is in {where}")
        return [*self.gone(), *missing, *silent, *elsewhere]


def meet(
    store: Any,
    rank: int,
    size: int,
    timeout_s: float,
    report_after_s: float,
    look: Callable[[], None] = lambda: None,
) -> Peers:
    """Wait until all ranks of a world are there.

    Args:
        store: The world's.
        timeout_s: How long to wait.
        report_after_s: After how long to print who is missing.
        look: Is called again and again; what it raises ends the waiting.

    Raises:
        ProcessLost: with the ranks that have not come.
    """
    peers, began, reported = Peers(store, rank, size), time.monotonic(), False
    with suppress(StoreSilent):  # it is told nevertheless, when the store answers
        peers.tell("start", 0)
    while not peers.all_came():
        waited = time.monotonic() - began
        if waited > timeout_s:
            raise ProcessLost.of(
                f"{peers.absent()} after {waited:.0f} s (parallel.timeout_s={timeout_s:g})",
                "every process of a run has to be there before the first step",
                "see to the nodes of these ranks, then start the same command again",
            )
        if waited > report_after_s and not reported:
            reported = True
            print(f"loopcoder: rank {rank} waits: {peers.absent()}", file=sys.stderr, flush=True)
        look()
        time.sleep(0.05 + size / 2000)  # rank 0 asks for every rank
    return peers


def was_lost(error: BaseException) -> bool:
    """Say whether an error is that of a collective some of whose ranks are gone.

    gloo has no class of errors of its own; torch's checkpoints wrap the errors of all ranks.
    """
    return any(
        isinstance(cause, dist.DistError)
        or (
            isinstance(cause, RuntimeError | CheckpointException)
            and any(text in str(cause).lower() for text in _LOST_TEXTS)
        )
        for cause in (error, error.__cause__, error.__context__)
    )


def interruption_of(error: BaseException) -> KeyboardInterrupt | None:
    """Return the request to stop behind the error of a checkpoint: torch takes it for a fault of
    the rank that was asked, and tells all ranks; None: there is none."""
    failures = error.failures.values() if isinstance(error, CheckpointException) else ()
    found = (failure for failure, _ in failures)
    return next((one for one in found if isinstance(one, KeyboardInterrupt)), None)


def _key(rank: int) -> str:
    return f"loopcoder/peer/{rank}"
