"""Processes that the kernel killed: they say nothing themselves, so their parent does."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from loopcoder.errors import EXIT_KILLED
from loopcoder.plan.fit import Needs

_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))
"""This container's or, where it has no count, the machine's; each has a line `oom_kill N`."""


def kernel_kills(counters: Sequence[Path] = _COUNTERS) -> int:
    """Return how many processes the kernel has killed so far for want of memory."""
    for path in counters:
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


def worker_killed(code: int) -> int:
    """Return a code of `start_workers` as `kill_named` takes it: 137 is a worker's SIGKILL."""
    return -signal.SIGKILL if code == EXIT_KILLED else code


def kill_named(code: int, kills_before: int, needs: Callable[[], Needs]) -> str | None:
    """Return what to say of a process that failed; None: it was not killed.

    Args:
        code: its exit code, negative for a signal. A 137 was named by the process itself, whose
            worker was killed.
        kills_before: `kernel_kills()` before it was started.
        needs: says what memory it was estimated to need, and what there is.
    """
    for_memory = kernel_kills() > kills_before
    if code != -signal.SIGKILL and not (code == 1 and for_memory):
        return None
    need = needs()
    if for_memory:
        return f"loopcoder: killed by the kernel for want of memory: {need.text}"
    if need.is_small:
        return (
            "loopcoder: killed from outside: kill -9, a scheduler, or a container's limit that is "
            f"not seen here; hardly for want of memory: {need.text}"
        )
    return f"loopcoder: killed by the kernel, most likely for want of memory: {need.text}"
