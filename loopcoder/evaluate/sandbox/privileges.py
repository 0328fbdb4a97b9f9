"""Has the kernel apply a candidate's limits, and takes its privileges."""

from __future__ import annotations

import os
import resource

from loopcoder.evaluate.sandbox import system
from loopcoder.evaluate.sandbox.filter import Filter
from loopcoder.evaluate.sandbox.limits import Limits
from loopcoder.evaluate.sandbox.namespaces import NOBODY


def limit(limits: Limits) -> None:
    """Set the limits of this process and of all that it starts, for good."""
    # The judge and the guard are processes of the same user, unless that is root.
    others = 0 if os.geteuid() == 0 else 2
    if limits.isolated:  # elsewhere it would count all processes of this user
        lower(resource.RLIMIT_NPROC, limits.processes + others)
    for what, most in (
        (resource.RLIMIT_AS, limits.process_bytes),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, limits.scratch_bytes // 4),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, 64),
    ):
        lower(what, most)


def lower(what: int, most: int) -> None:
    """Set a limit of this process, unless it has a lower one."""
    _, hardest = resource.getrlimit(what)
    allowed = most if hardest == resource.RLIM_INFINITY else min(most, hardest)
    resource.setrlimit(what, (allowed, allowed))


def drop(calls: Filter) -> None:
    """Give up all privileges, and the system calls that a candidate does without, for good."""
    system.drop_bounding_set()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    system.drop_capabilities()
    system.prctl(system.PR_SET_NO_NEW_PRIVS, 1)
    calls.apply()
