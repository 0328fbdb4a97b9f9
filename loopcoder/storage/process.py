"""Processes that must not outlive the one that started them, and that can talk to it anywhere."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import tempfile
import threading
from multiprocessing import util
from multiprocessing.connection import wait

from loopcoder.storage.signals import ignore_requests

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LONGEST_TMPDIR = 107 - len("/pymp-12345678/listener-12345678")
"""The address of a socket has 107 bytes for its path (unix(7))."""
_LONGEST_OF_RAY = 107 - len("/ray/session_2026-11-29_11-37-44_240688_1234567/sockets/plasma_store")


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


def serve_parent() -> None:
    """Begin the life of a process that works for its parent alone: it ends when that does, and not
    when the two are asked to stop.

    This module imports nothing large, so that one that is spawned into this stays small.
    """
    ignore_requests()
    exit_with_parent()


def use_short_socket_paths() -> None:
    """Keep multiprocessing's sockets out of a TMPDIR that is too long for their addresses.

    Call it before starting a fork server or a manager; children use the folder of their parent.
    """
    if len(os.fsencode(tempfile.gettempdir())) <= _LONGEST_TMPDIR:
        return
    usual = tempfile.tempdir
    tempfile.tempdir = "/tmp"
    try:
        util.get_temp_dir()  # makes the folder, which this process keeps and removes at its end
    finally:
        tempfile.tempdir = usual


def use_short_paths_of_ray() -> None:
    """Keep Ray's sockets out of a TMPDIR that is too long for their addresses.

    Call it before Ray starts. RAY_TMPDIR, where it is set, is left as it is.
    """
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_OF_RAY:
        os.environ.setdefault("RAY_TMPDIR", "/tmp")
