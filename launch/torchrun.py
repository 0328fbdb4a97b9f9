"""Start the processes of one machine through torchrun, and propagate their exit code.

torchrun itself returns 1 whatever its workers returned, and dies of SIGUSR1 and its like. So each
worker leaves its exit code in a file of its own, and signals go to the workers, who save and stop;
torchrun then sees them end. A worker that is killed leaves nothing: `loopcoder.parallel.elastic`
returns 137 for it.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from launch.nodes import Attendance, arguments_of_torchrun
from launch.process import child_environ, run_forwarding
from loopcoder.config.compose import save_config
from loopcoder.config.schema import Config
from loopcoder.errors import (
    EXIT_DONE,
    EXIT_KILLED,
    EXIT_RETRY,
    EXIT_VARIABLE,
    Preempted,
    recorded_exits,
)

CONFIG_VARIABLE = "LOOPCODER_CONFIG"
"""Path of a composed config: workers load it, so that it is composed once."""
HASH_VARIABLE = "LOOPCODER_CONFIG_SHA256"
"""SHA-256 of the file that CONFIG_VARIABLE names, where a job was submitted with it."""
OVERRIDES_VARIABLE = "LOOPCODER_OVERRIDES"
"""What was asked for on the command line, for the record of the run."""


def start_workers(config: Config, num_processes: int, command: Sequence[str] = ("train",)) -> int:
    """Run a verb of loopcoder in processes of this machine and return their exit code.

    Args:
        config: Resolved and checked; the processes find it by `handed_config`.
        num_processes: Of the run, on all its nodes.
        command: The verb, and what stands behind it.

    Raises:
        Preempted: asked to stop before there are workers that could say so.
        InputError: the nodes cannot meet where they are to.
        ProcessLost: the node where they meet has not come.
    """
    parallel = config.parallel
    here = num_processes // parallel.nodes
    meeting = arguments_of_torchrun(parallel)
    with tempfile.TemporaryDirectory(prefix="loopcoder-") as folder:
        config_path, exit_path = Path(folder, "config.yaml"), Path(folder, "exit_codes")
        save_config(config, config_path)
        threads = max(1, len(os.sched_getaffinity(0)) // here)
        # torch's sockets warn of every host name that does not resolve
        quiet = {"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}
        environ = quiet | child_environ()
        environ |= {CONFIG_VARIABLE: str(config_path), EXIT_VARIABLE: str(exit_path)}
        environ.pop(HASH_VARIABLE, None)  # that of the config from which this one was resolved
        launcher = [sys.executable, "-m", "loopcoder.parallel.elastic", *meeting]
        launcher += [f"--nproc-per-node={here}", "-m", "loopcoder", *command]
        attendance = Attendance(parallel)

        def look(torchrun: psutil.Process) -> None:
            failed = bool(recorded_exits(exit_path))
            attendance.look(torchrun, _workers(torchrun.pid), failed=failed)

        several = parallel.nodes > 1
        code, signalled = run_forwarding(launcher, environ, _workers, look if several else None)
        if signalled and code != EXIT_DONE and not recorded_exits(exit_path):
            raise Preempted("asked to stop; the same command continues")
        return exit_code(code, exit_path, signalled)


def _workers(pid: int) -> list[psutil.Process]:
    """Return torchrun's workers; none before it has started them."""
    try:
        children = psutil.Process(pid).children()
        return [child for child in children if "loopcoder" in child.cmdline()]
    except psutil.Error:
        return []


def exit_code(torchrun_code: int, exit_path: Path, signalled: bool) -> int:
    """Return the run's exit code: the first that a worker left; torchrun then ended the others.

    137 is that of a worker that was killed, and what the others left follows from it; 75 that of
    torchrun where another node, which kept its store, is gone.
    """
    if torchrun_code in (EXIT_DONE, EXIT_KILLED):
        return torchrun_code
    for code in recorded_exits(exit_path).values():
        return code
    return EXIT_RETRY if signalled or torchrun_code in (EXIT_RETRY, -signal.SIGKILL) else 1
