"""Run one process per GPU or rank of this machine for a short while; they meet those of others.

torchrun would do, and takes as long to start as all the rest.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from launch.nodes import meeting_point, place_of
from launch.process import child_environ
from loopcoder.config.schema import ParallelConfig

_LAST_LINES = 3


def world_of(parallel: ParallelConfig, here: int) -> tuple[bool, dict[str, str]]:
    """Return whether the nodes meet on this one, and what the environment says of their world.

    Args:
        parallel: How many nodes there are, and where they meet.
        here: Processes of this machine.

    Raises:
        InputError: the nodes cannot meet where they are to.
    """
    host, port, is_host = "127.0.0.1", 0, True
    if parallel.nodes > 1:
        host, port = meeting_point(parallel)
        is_host, _ = place_of(host, port)
    return is_host, {
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port or _free_port()),
        "WORLD_SIZE": str(parallel.nodes * here),
        "LOCAL_WORLD_SIZE": str(here),
    }


def run_until(
    command: Sequence[str], environs: Sequence[Mapping[str, str]], until: float
) -> str | None:
    """Run a command in one process for each environment; return what is wrong with how the first
    of those that failed ended, or None.

    Args:
        environs: Besides that of this process.
        until: When those that are left are ended, on the monotonic clock.
    """
    with tempfile.TemporaryFile() as said:
        processes = [_started(command, environ, said.fileno()) for environ in environs]
        late = False
        try:
            for process in processes:
                process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            late = True  # it may wait for one that has failed
        codes = [process.poll() for process in processes]
        for process in processes:
            _end(process)
        failed = next((code for code in codes if code), None)
        if failed is None:
            return "it has not ended in time" if late else None
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
        return f"it ended with {failed}: {' '.join(lines[-_LAST_LINES:]) or 'without a word'}"


def _started(
    command: Sequence[str], environ: Mapping[str, str], output: int
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        list(command),
        env={"TORCH_CPP_LOG_LEVEL": "ERROR"} | child_environ() | dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group; what hangs in the kernel is left behind."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
