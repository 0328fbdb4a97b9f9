"""The process that tests a generated program, which it cannot see and which cannot see it."""

from __future__ import annotations

import resource
import signal
from typing import Any

from loopcoder.evaluate.sandbox import privileges
from loopcoder.evaluate.sandbox.limits import Limits
from loopcoder.evaluate.sandbox.values import SHOWN, NotPlain, decode, encode, receive, send

PASSED = "passed"
TIMED_OUT = "timed out"
_AGAIN_S = 0.1


class Failed(Exception):
    """The candidate raised an error, answered with what is no value, or is gone."""


class TimedOut(BaseException):
    """No test catches it, unless it catches everything."""


class _Clock:
    """Raises TimedOut from a time on, again and again: a test may have swallowed it."""

    def __init__(self, timeout_s: float):
        self.is_over = False
        signal.signal(signal.SIGALRM, self._interrupt)
        signal.setitimer(signal.ITIMER_REAL, timeout_s, _AGAIN_S)

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _interrupt(self, *_: Any) -> None:
        self.is_over = True
        raise TimedOut


class _Candidate:
    """A function that is in another process."""

    def __init__(self, descriptor: int, limits: Limits):
        self._descriptor, self._most = descriptor, limits.message_bytes
        self.failure: Failed | None = None
        """The first one, which a test may have caught."""

    def define(self, program: str, name: str) -> None:
        self._asked([program, name])

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        answer = self._asked([encode(list(arguments)), encode(named)])
        try:
            return decode(answer)
        except Exception as error:  # whatever a message that no `encode` wrote leads to
            raise self._lost(f"its answer is no value ({type(error).__name__})") from error

    def _asked(self, question: Any) -> Any:
        try:
            send(self._descriptor, question)
            answer = receive(self._descriptor, self._most)
            match answer:
                case {"value": value}:
                    return value
                case {"error": str(text)}:
                    raise Failed(text[:SHOWN])
            raise NotPlain("a message that is no answer")
        except (EOFError, OSError) as error:
            raise self._lost("its process ended") from error
        except NotPlain as error:
            raise self._lost(str(error)) from error

    def _lost(self, why: str) -> Failed:
        self.failure = self.failure or Failed(why)
        return self.failure


def judge(job: dict[str, str], descriptor: int, limits: Limits) -> str:
    """Return PASSED, TIMED_OUT, or how the program failed.

    Args:
        job: `program`, which defines the function `entry_point`; `setting`, which has what the test
            uses besides it; `test`, which defines `check(candidate)`.
        descriptor: Of the socket to the candidate.
    """
    # Of CPU time, where it computes without a look at signals.
    privileges.lower(resource.RLIMIT_CPU, limits.cpu_s)
    privileges.lower(resource.RLIMIT_AS, limits.judge_bytes)
    clock = _Clock(limits.timeout_s)
    try:
        verdict = _verdict(job, _Candidate(descriptor, limits))
        clock.stop()
    except TimedOut:
        clock.stop()
    return TIMED_OUT if clock.is_over else verdict


def _verdict(job: dict[str, str], candidate: _Candidate) -> str:
    try:
        candidate.define(job["program"], job["entry_point"])
        names: dict[str, Any] = {"__name__": "test"}
        exec(compile(f"{job['setting']}\n{job['test']}", "test", "exec"), names)
        names[job["entry_point"]] = candidate
        names["check"](candidate)
        if candidate.failure is not None:
            raise candidate.failure
    except Exception as error:
        text = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
        return f"failed: {text[:SHOWN]}".strip(" :")
    return PASSED
