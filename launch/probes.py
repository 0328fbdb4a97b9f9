"""Start one process per GPU or rank of this machine for a short while, through torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from launch.nodes import arguments_of_torchrun
from launch.process import child_environ
from loopcoder.config.schema import ParallelConfig

_LAST_LINES = 3


def probe_command(parallel: ParallelConfig, here: int, module: Sequence[str]) -> list[str]:
    """Return the command that runs a module in processes of this machine, which meet those of the
    others.

    Args:
        parallel: How many nodes there are, where they meet, and how long that may take.
        here: Processes of this machine.
        module: Its name and arguments.

    Raises:
        InputError: the nodes cannot meet where they are to.
        ProcessLost: the node where they meet has not come.
    """
    torchrun = [sys.executable, "-m", "loopcoder.parallel.elastic"]
    torchrun += arguments_of_torchrun(parallel)
    return [*torchrun, f"--nproc-per-node={here}", "-m", *module]


def run_until(command: Sequence[str], environ: Mapping[str, str], until: float) -> str | None:
    """Run a command; return what is wrong with how it ended, or None.

    Args:
        environ: Besides that of this process.
        until: When it and all that it has started is ended, on the monotonic clock.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            list(command),
            env={"TORCH_CPP_LOG_LEVEL": "ERROR"} | child_environ() | dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            _end(process)
            return "it has not ended in time"
        except BaseException:
            _end(process)
            raise
        if code == 0:
            return None
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
        return f"it ended with {code}: {' '.join(lines[-_LAST_LINES:]) or 'without a word'}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group; what hangs in the kernel is left behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
