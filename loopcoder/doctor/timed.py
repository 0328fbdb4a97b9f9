"""Checks in processes of their own, each with its time limit.

A disk whose server is gone holds a process for ever, and nothing ends it, not even SIGKILL; a
driver or a resolver may do the same. Such a process is left behind.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from loopcoder.doctor import thresholds as t
from loopcoder.doctor.findings import Seen

_LAST_LINES = 3


@dataclass(frozen=True)
class Check:
    """A function that returns a `Seen`, to be called in another process."""

    name: str
    function: str
    """MODULE:NAME"""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """By their names; plain objects."""
    hangs: tuple[str, str] = ("it should answer at once", "look at the machine")
    """Why and fix of the finding that it has not answered."""


def run_checks(
    checks: Sequence[Check],
    environ: Mapping[str, str],
    limit_s: float = t.CHECK_S,
) -> Seen:
    """Run checks side by side; return what they have seen, in their order.

    Args:
        environ: In which `python -m loopcoder...` is this package.
        limit_s: For each of them; one that takes longer is a finding, and is left behind.
    """
    began, seen = time.monotonic(), Seen()
    started: list[_Started] = []
    not_started = Seen()
    for check in checks:
        try:
            started.append(_Started(check, environ))
        except OSError as error:
            why, fix = "what it looks at is unknown", "ulimit -n 65536; ulimit -u; free memory"
            fact = f"could not be looked at: {error.strerror or error}"
            not_started.add(check.name, "error", fact, why, fix)
    for one in started:
        seen.join(one.result(began + limit_s, limit_s))
    seen.join(not_started)
    return seen


class _Started:
    """A check that is under way; what it prints goes to a file, so that nobody waits for a pipe
    that a process which hangs keeps open."""

    def __init__(self, check: Check, environ: Mapping[str, str]):
        self._check = check
        self._out: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `result` closes it
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `result` closes it
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "loopcoder.doctor.child"),
                *(check.function, json.dumps(dict(check.arguments))),
            ],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._said,
        )

    def result(self, until: float, limit_s: float) -> Seen:
        """Return what it has seen by a time of the monotonic clock."""
        with self._out, self._said:
            try:
                self._process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._process.kill()  # and it is not waited for
                return self._hanging(limit_s)
            self._out.seek(0)
            try:
                return Seen.from_json(json.loads(self._out.read()))
            except ValueError:
                return self._failed()

    def _hanging(self, limit_s: float) -> Seen:
        seen, (why, fix) = Seen(), self._check.hangs
        fact = f"hangs: no answer within {limit_s:.0f} s"
        seen.add(self._check.name, "error", fact, why, fix)
        return seen

    def _failed(self) -> Seen:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        said = " ".join(lines[-_LAST_LINES:]) or "nothing"
        seen, code = Seen(), self._process.returncode
        fact = f"could not be looked at: the check ends with {code} and says: {said}"
        why = "what it looks at is unknown"
        seen.add(self._check.name, "warning", fact, why, f"look at {self._check.name} by hand")
        return seen
