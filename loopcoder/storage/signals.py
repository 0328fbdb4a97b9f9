"""Signals that ask a process to stop, and what it does with them while it is only starting."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from types import FrameType

from loopcoder.errors import EXIT_RETRY, record_exit

OF_A_SCHEDULER = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""What Slurm's --signal and a limit of CPU time send some time before the end."""
ASKS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, *OF_A_SCHEDULER)
"""What asks to stop, unless it is ignored. SIGQUIT does not: it ends a process that hangs."""
_OF_A_TERMINAL = (signal.SIGINT, signal.SIGHUP)


def heard() -> list[signal.Signals]:
    """Return the signals that ask this process to stop.

    A Ctrl-C or a SIGHUP that is ignored is for others: a shell's script starts what runs in the
    background without the first, and nohup without the second.
    """
    return [
        number
        for number in ASKS
        if number not in _OF_A_TERMINAL or signal.getsignal(number) != signal.SIG_IGN
    ]


def name_of(number: int) -> str:
    """Return a signal's name, for people."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def leave_terminal() -> None:
    """Send what is printed from here on nowhere: a terminal that was closed refuses every write."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


def ignore_requests() -> None:
    """Let this process finish its work whatever asks it to stop: its parent decides when it ends.

    A scheduler signals every process of a job, and a terminal its whole process group.
    """
    for number in ASKS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def requests_held_back() -> Iterator[None]:
    """Hold back what asks to stop while the block runs; the handlers get it afterwards.

    A process that the block starts inherits the mask, so it is safe from its first instruction on
    (CPython's multiprocessing lets SIGINT and SIGTERM through once, when it starts its resource
    tracker, which is done first). Call from the main thread.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKS)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def interrupted_by_signals(what: str) -> None:
    """Raise KeyboardInterrupt, with the signal's name and `what`, when asked to stop from here on.

    No exception of ours, which a library may catch for an error of its own. Call from the main
    thread.
    """
    starter = os.getpid()

    def stop(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != starter:  # a forked worker of the data pipeline ends as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if number == signal.SIGHUP:
            leave_terminal()
        raise KeyboardInterrupt(f"{name_of(number)} {what}")

    for number in heard():
        signal.signal(number, stop)


@contextmanager
def ended_at_once() -> Iterator[None]:
    """End this process with one line and 75 when it is asked to stop during the block.

    For imports, which have nothing to save: an exception in the middle of one may be swallowed by
    what imports optional packages. Call from the main thread.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        if os.environ.get("RANK", "0") == "0":
            with suppress(OSError):  # nobody reads it
                os.write(2, f"loopcoder: {name_of(number)} before anything was done\n".encode())
        with suppress(OSError):  # the launcher's folder is gone, or full
            record_exit(EXIT_RETRY)
        os._exit(EXIT_RETRY)

    before = {number: signal.signal(number, end) for number in heard()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
