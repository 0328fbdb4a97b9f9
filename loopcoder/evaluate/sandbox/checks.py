"""Checks of generated programs, from the side of who asks for them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from loopcoder.errors import InputError, LoopcoderError
from loopcoder.evaluate.sandbox.judge import PASSED, TIMED_OUT
from loopcoder.evaluate.sandbox.limits import Limits

_SOURCES = Path(__file__).parents[3]
_START = (
    "import sys; sys.path.append({!r}); from loopcoder.evaluate.sandbox.guard import main; main()"
)
_GRACE_S = 10.0
"""For processes to start, and for a judge that computes with a large value."""
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


def verdict_of(check: Check, limits: Limits) -> str:
    """Run a program and its test in processes of their own, and return "passed", "timed out", or
    "failed: ..." with the reason.

    Raises:
        InputError: this machine does not isolate a process, and `limits` ask for it.
    """
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
    return told["verdict"]


def require_isolation(limits: Limits) -> None:
    """Raise what `verdict_of` would raise, before anything long."""
    works = Check("def f(): return 1", "f", "def check(candidate): assert candidate() == 1")
    roomy = Limits(**asdict(limits) | {"timeout_s": 60.0})
    if (verdict := verdict_of(works, roomy)) != PASSED:
        raise LoopcoderError.of(
            f"a program that returns 1 is judged {verdict!r}",
            "the limits of the sandbox are too low for Python itself, or the machine is too busy",
            "human_eval.memory_bytes=2000000000",
        )


def _told(job: dict[str, str], limits: Limits) -> dict[str, str]:
    command = [sys.executable, "-I", "-S", "-c", _START.format(str(_SOURCES))]
    process = subprocess.Popen(
        [*command, json.dumps(asdict(limits))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(json.dumps(job).encode(), limits.timeout_s + _GRACE_S)
    except subprocess.TimeoutExpired:
        return {"verdict": TIMED_OUT}
    finally:
        # Also after an interrupt. The kernel then ends the judge, and with it all others.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    if not out:
        # The kernel ended the judge: it computed too long, or with values too large.
        why = err.decode(errors="replace").strip().splitlines()[-1:] or ["the test was ended"]
        return {"verdict": f"failed: {why[0]}"}
    told: dict[str, str] = json.loads(out)
    return told
