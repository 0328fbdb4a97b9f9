"""The first process of a check: it makes the others, in namespaces of their own, and waits.

    python -I -S -c "... guard.main()" LIMITS

The job comes on stdin; {"verdict": ...} or {"refused": ...} goes to stdout.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import NoReturn

from loopcoder.evaluate.sandbox import namespaces, privileges, system
from loopcoder.evaluate.sandbox.candidate import serve
from loopcoder.evaluate.sandbox.filter import Filter
from loopcoder.evaluate.sandbox.judge import judge
from loopcoder.evaluate.sandbox.limits import Limits


def main() -> NoReturn:
    """Judge the program of stdin."""
    limits = Limits(**json.loads(sys.argv[1]))
    sys.path[:] = namespaces.without_packages(sys.path)
    try:
        calls = None
        if limits.isolated:
            calls = Filter()
            namespaces.enter()
        system.end_with_parent()
        process = os.fork()
        if process == 0:
            _judge(limits, calls)
        os.close(0)
        os.close(1)
        os.waitpid(process, 0)
    except OSError as error:
        _refuse(error)
    os._exit(0)


def _judge(limits: Limits, calls: Filter | None) -> NoReturn:
    try:
        system.end_with_parent()
        system.prctl(system.PR_SET_DUMPABLE, 0)
        if calls is not None:
            namespaces.make_root(limits.scratch_bytes)
        descriptor = _candidate(limits, calls)
        # Only now, when no other process has a copy of this one's memory to come.
        job = json.loads(sys.stdin.buffer.read())
        print(json.dumps({"verdict": judge(job, descriptor, limits)}), flush=True)
    except OSError as error:
        _refuse(error)
    finally:
        os._exit(0)  # the first process of its namespace: the kernel ends all others in it


def _candidate(limits: Limits, calls: Filter | None) -> int:
    """Start the candidate, and return the descriptor of the socket to it."""
    own, others = socket.socketpair()
    if calls is not None:
        os.unshare(os.CLONE_NEWPID)
    if os.fork() == 0:
        try:
            os.close(0)
            own.close()
            os.setsid()
            if calls is None:
                system.end_with_parent()
            privileges.limit(limits)
            if calls is not None:
                privileges.drop(calls)
            os.write(others.fileno(), b"+")
        except OSError as error:
            os.write(others.fileno(), str(error).encode())
            os._exit(1)
        serve(others.fileno(), limits.message_bytes)
    others.close()
    told = own.recv(1000)
    if told != b"+":
        raise OSError(told.decode() or "the process of the candidate ended")
    return own.detach()


def _refuse(error: OSError) -> None:
    text = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    os.write(1, json.dumps({"refused": text}).encode())
