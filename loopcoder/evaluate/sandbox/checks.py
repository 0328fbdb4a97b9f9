"""Checks of generated programs, from the side of who asks for them."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from loopcoder.errors import InputError, LoopcoderError, ProcessLost
from loopcoder.evaluate.sandbox.judge import PASSED, TIMED_OUT
from loopcoder.evaluate.sandbox.limits import Limits

_SOURCES = Path(__file__).parents[3]
_START = (
    "import sys; sys.path.append({!r}); from loopcoder.evaluate.sandbox.guard import main; main()"
)
_START_S = 60.0
"""For processes to begin; a busy machine takes its time."""
_GRACE_S = 10.0
"""For a judge that computes with a large value, and for processes to end."""
_WAITS_S = (1.0, 5.0)
"""Before what the machine kept from a verdict is tried again."""
_ROUNDED_S = 0.5
"""By which the CPU time that the kernel tells may be less than what it has limited."""
_ENVIRONMENT = ("LD_LIBRARY_PATH",)
"""What Python itself may need of it; a candidate gets nothing."""


@dataclass(frozen=True)
class Check:
    """A program, and the test of it."""

    program: str
    """Defines `entry_point`."""
    entry_point: str
    test: str
    """Defines `check(candidate)`, which returns if the function is right."""
    setting: str = ""
    """Defines what the test uses besides."""


class _Fault(Exception):
    """The machine, and not the program, kept a check from a verdict."""


def verdict_of(check: Check, limits: Limits) -> str:
    """Run a program and its test in processes of their own, and return "passed", "timed out", or
    "failed: ..." with the reason.

    Raises:
        InputError: this machine does not isolate a process, and `limits` ask for it.
        ProcessLost: its processes cannot be started, or are ended, again and again.
    """
    for wait_s in _WAITS_S:
        try:
            return _verdict_of(check, limits)
        except _Fault:
            time.sleep(wait_s)
    try:
        return _verdict_of(check, limits)
    except _Fault as fault:
        raise ProcessLost.of(
            f"a generated program cannot be judged: {fault}",
            f"it was tried {len(_WAITS_S) + 1} times; the machine has no memory or no processes "
            "left, or is too busy",
            "the same command goes on; human_eval.workers=1 takes less",
        ) from fault


def _verdict_of(check: Check, limits: Limits) -> str:
    told = _told(asdict(check), limits)
    if "refused" in told:
        raise InputError.of(
            f"generated programs cannot be isolated here: {told['refused']}",
            "they do whatever the model wrote; this takes namespaces of Linux, 5.12 or newer, "
            "that users may make, and libseccomp",
            "apt-get install libseccomp2; sysctl kernel.apparmor_restrict_unprivileged_userns=0 "
            "(Ubuntu), user.max_user_namespaces=10000; docker run --security-opt "
            "seccomp=unconfined --cap-add SYS_ADMIN; or, where losing this machine's files is no "
            "loss, human_eval.sandbox=none",
        )
    return str(told["verdict"])


def require_isolation(limits: Limits) -> None:
    """Raise what `verdict_of` would raise, before anything long."""
    works = Check("def f(): return 1", "f", "def check(candidate): assert candidate() == 1")
    roomy = replace(limits, timeout_s=60.0)
    if (verdict := verdict_of(works, roomy)) != PASSED:
        raise LoopcoderError.of(
            f"a program that returns 1 is judged {verdict!r}",
            "the limits of the sandbox are too low for Python itself, or the machine is too busy",
            f"human_eval.memory_bytes={2 * limits.memory_bytes}",
        )


def command(limits: Limits, parent: int) -> list[str]:
    """Return what starts the guard of a check, which ends with its parent."""
    start = _START.format(str(_SOURCES))
    return [sys.executable, "-I", "-S", "-c", start, json.dumps(asdict(limits)), str(parent)]


def _told(job: dict[str, str], limits: Limits) -> dict[str, Any]:
    """Return the guard's answer, a `verdict` or `refused`, once its processes have ended."""
    with TemporaryFile() as asked, TemporaryFile() as errors:
        asked.write(json.dumps(job).encode())
        asked.seek(0)
        try:
            process = subprocess.Popen(
                command(limits, os.getpid()),
                stdin=asked,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd="/",
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                start_new_session=True,
            )
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOMEM):
                raise _Fault(str(error)) from error
            raise
        try:
            return _answer(process, limits)
        except _Fault as fault:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
            raise _Fault(": ".join([str(fault), *said[-1:]])) from fault
        finally:
            _end(process)


def _answer(process: subprocess.Popen[bytes], limits: Limits) -> dict[str, Any]:
    assert process.stdout is not None
    lines = _Lines(process.stdout.fileno())
    told = lines.read(_START_S)
    if told is None:
        raise _Fault(f"its processes have not begun within {_START_S:g} s")
    if "refused" in told:
        return told
    if "begun" not in told:
        raise _Fault(str(told.get("fault", "its processes ended before they began")))
    told = lines.read(limits.timeout_s + _GRACE_S)
    if told is None:
        return {"verdict": TIMED_OUT}
    if "verdict" in told or "refused" in told:
        return told
    if "ended" not in told:
        raise _Fault(str(told.get("fault", "the guard of its processes was ended")))
    number = told["ended"]
    if number == signal.SIGKILL and told["cpu_s"] > limits.cpu_s - _ROUNDED_S:
        return {"verdict": TIMED_OUT}
    if number == 0 and told["code"] == 0:
        return {"verdict": TIMED_OUT}
    if number in (0, signal.SIGKILL):
        raise _Fault("the process of the test was ended")
    return {"verdict": f"failed: the test was ended by {signal.Signals(number).name}"}


class _Lines:
    """What a guard says."""

    def __init__(self, descriptor: int):
        self._descriptor, self._rest = descriptor, b""

    def read(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the next line; an empty one at the end, None when the time is over."""
        deadline = time.monotonic() + timeout_s
        ready = select.poll()
        ready.register(self._descriptor, select.POLLIN)
        while b"\n" not in self._rest:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not ready.poll(left_s * 1000):
                return None
            if not (part := os.read(self._descriptor, 1 << 16)):
                return {}
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        return told


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a guard, also after an interrupt, with all that it has started."""
    assert process.stdout is not None
    process.terminate()  # it ends the judge, and the kernel with it all others
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    process.stdout.close()
