"""Run a child process so that stopping this one stops it, gently."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType

import psutil

from loopcoder.storage.process import exit_with_parent

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def run_forwarding(
    command: list[str],
    environ: dict[str, str],
    targets: Callable[[int], Sequence[psutil.Process]],
) -> tuple[int, bool]:
    """Run a command to its end; return its exit code and whether a signal was forwarded meanwhile.

    SIGTERM, SIGINT and SIGUSR1 go to the processes that `targets` names for the child's id; if it
    names none, nothing worth saving has started, and the child is terminated. Call from the main
    thread.
    """
    # In a session of its own a Ctrl-C reaches the child through `forward` only, and not twice.
    process = subprocess.Popen(
        command,
        env=environ,
        start_new_session=True,
        preexec_fn=partial(exit_with_parent, signal.SIGTERM),  # noqa: PLW1509 - one system call that takes no lock
    )
    signalled = False

    def forward(number: int, _frame: FrameType | None) -> None:
        nonlocal signalled
        signalled = True
        found = targets(process.pid)
        for target in found:
            target.send_signal(number)
        if not found:
            process.terminate()

    # A script's job in the background is started with SIGINT ignored: a Ctrl-C is not for it.
    heard = [n for n in _FORWARDED if n != signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, forward) for number in heard}
    try:
        return process.wait(), signalled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
