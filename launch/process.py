"""Run a child process so that stopping this one stops it, gently."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

import psutil

from loopcoder.storage.process import exit_with_parent
from loopcoder.storage.signals import heard, leave_terminal

_LOOK_EVERY_S = 1.0


def child_environ() -> dict[str, str]:
    """Return an environment in which `python -m loopcoder` is this package.

    The working folder, which `-m` would search first, may have a loopcoder.py or launch.py.
    """
    environ = os.environ | {"PYTHONSAFEPATH": "1"}
    root = str(Path(__file__).resolve().parents[1])
    if not root.endswith("-packages"):  # nor is it site-packages, where Python looks by itself
        before = environ.get("PYTHONPATH")
        environ["PYTHONPATH"] = root if not before else f"{root}{os.pathsep}{before}"
    return environ


def run_forwarding(
    command: list[str],
    environ: dict[str, str],
    targets: Callable[[int], Sequence[psutil.Process]],
    look: Callable[[psutil.Process], None] | None = None,
) -> tuple[int, bool]:
    """Run a command to its end; return its exit code and whether a signal was forwarded meanwhile.

    What asks this process to stop goes to the processes that `targets` names for the child's id; if
    it names none, nothing worth saving has started, and the child is terminated. `look` is called
    every second. Call from the main thread.
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
        if number == signal.SIGHUP:
            leave_terminal()
        found = targets(process.pid)
        for target in found:
            target.send_signal(number)
        if not found:
            process.terminate()

    before = {number: signal.signal(number, forward) for number in heard()}
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(None if look is None else _LOOK_EVERY_S), signalled
            if look is not None:
                with suppress(psutil.NoSuchProcess):  # it has ended since
                    look(psutil.Process(process.pid))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
