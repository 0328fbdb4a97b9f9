"""Processes that must not outlive the one that started them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def exit_with_parent(number: int = signal.SIGKILL) -> None:
    """Let this process end by a signal when the one that started it ends, however that ends.

    Call it in the new process: first thing of its target, initializer or preexec_fn.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid == os.getppid():
        return

    # A fork server stands between, which lives as long as any of its children.
    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, name="loopcoder-parent", daemon=True).start()
