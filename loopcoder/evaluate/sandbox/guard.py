"""The first process of a check: it makes the others, in namespaces of their own, and waits.

    python -I -S -c "... guard.main()" LIMITS PARENT

The job comes on stdin. To stdout go lines of JSON, the last two if all goes well:

    {"refused": WHY}     the machine does not isolate processes
    {"fault": WHY}       it has no room for a process now
    {"begun": true}      the program and its test start
    {"verdict": ...}
    {"ended": SIGNAL, "code": ..., "cpu_s": ...}     of the judge
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import sys
from typing import Any, NoReturn

from loopcoder.evaluate.sandbox import namespaces, privileges, system
from loopcoder.evaluate.sandbox.candidate import serve
from loopcoder.evaluate.sandbox.filter import Filter
from loopcoder.evaluate.sandbox.judge import TimedOut, judge
from loopcoder.evaluate.sandbox.limits import Limits

_NO_ROOM = (errno.EAGAIN, errno.ENOMEM, errno.ENFILE, errno.EMFILE)


def main() -> NoReturn:
    """Judge the program of stdin."""
    limits, parent = Limits(**json.loads(sys.argv[1])), int(sys.argv[2])
    sys.path[:] = namespaces.without_packages(sys.path)
    answers = os.dup(1)  # a test may print
    process = 0

    def end(*_: Any) -> None:
        # So that the judge is waited for here, and not left to whoever inherits it.
        if process == 0:
            os._exit(0)
        os.kill(process, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    try:
        calls = None
        if limits.isolated:
            calls = Filter()
            namespaces.enter()
        system.end_with_parent(lambda: os.getppid() != parent)
        alive, held = os.pipe()  # closes with this process
        process = os.fork()
        if process == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.close(held)
            _judge(limits, calls, answers, alive)
        os.close(0)
        os.close(1)
        _, status, used = os.wait4(process, 0)
        process = 0
        code = os.waitstatus_to_exitcode(status)
        cpu_s = used.ru_utime + used.ru_stime
        _say(answers, {"ended": max(0, -code), "code": max(0, code), "cpu_s": cpu_s})
    except OSError as error:
        _refuse(answers, error)
    os._exit(0)


def _judge(limits: Limits, calls: Filter | None, answers: int, alive: int) -> NoReturn:
    code = 1
    try:
        # A process outside its PID namespace has no number that could be compared.
        system.end_with_parent(lambda: bool(select.select([alive], [], [], 0)[0]))
        system.prctl(system.PR_SET_DUMPABLE, 0)
        if calls is not None:
            namespaces.make_root(limits.scratch_bytes)
        descriptor = _candidate(limits, calls)
        # Only now, when no other process has a copy of this one's memory to come.
        job = json.loads(sys.stdin.buffer.read())
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        _say(answers, {"begun": True})
        _say(answers, {"verdict": judge(job, descriptor, limits)})
        code = 0
    except TimedOut:
        code = 0  # a second time, when it had been noticed; no verdict means the same
    except OSError as error:
        _refuse(answers, error)
    finally:
        os._exit(code)  # the first process of its namespace: the kernel ends all others in it


def _candidate(limits: Limits, calls: Filter | None) -> int:
    """Start the candidate, and return the descriptor of the socket to it."""
    own, others = socket.socketpair()
    if calls is not None:
        os.unshare(os.CLONE_NEWPID)
    judging = os.getpid()
    if os.fork() == 0:
        try:
            os.close(0)
            own.close()
            os.setsid()
            if calls is None:
                system.end_with_parent(lambda: os.getppid() != judging)
            privileges.limit(limits)
            if calls is not None:
                privileges.drop(calls)
            os.write(others.fileno(), b"+")
        except OSError as error:
            os.write(others.fileno(), f"{error.errno or 0} {_text(error)}".encode())
            os._exit(1)
        serve(others.fileno(), limits.message_bytes)
    others.close()
    told = own.recv(1000)
    if told != b"+":
        if not told:
            raise OSError(errno.EAGAIN, "the process of the candidate was ended")
        number, _, text = told.decode().partition(" ")
        raise OSError(int(number), text)
    return own.detach()


def _refuse(answers: int, error: OSError) -> None:
    kind = "fault" if error.errno in _NO_ROOM else "refused"
    _say(answers, {kind: _text(error)})


def _text(error: OSError) -> str:
    return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)


def _say(answers: int, line: dict[str, Any]) -> None:
    os.write(answers, json.dumps(line).encode() + b"\n")
