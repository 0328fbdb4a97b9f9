"""Checks that hang or fail take nothing else with them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from launch.process import child_environ
from loopcoder.doctor.timed import Check, run_checks

PLANTED = """
import os, sys
from loopcoder.doctor.findings import Seen

def well(text):
    os.write(1, b"a library speaks")
    seen = Seen()
    seen.ok("well", text)
    return seen

def hang(path):
    open(path).read()  # of a FIFO into which nobody writes

def fail():
    raise OSError("broken in a new way")

def die():
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "planted.py").write_text(PLANTED)
    found = child_environ()
    found["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{found.get('PYTHONPATH', '')}"
    return found


def test_a_check_that_hangs_is_named_and_left_behind(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    checks = [
        Check("disk of x", "planted:hang", {"path": str(fifo)}, ("its server is gone", "mount it")),
        Check("well", "planted:well", {"text": "fine"}),
        Check("odd", "planted:fail"),
        Check("killed", "planted:die"),
    ]
    began = time.monotonic()
    hanging, well, odd, killed = run_checks(checks, environ, limit_s=2).findings
    assert time.monotonic() - began < 20
    assert (hanging.check, hanging.level, hanging.why) == (
        "disk of x",
        "error",
        "its server is gone",
    )
    assert hanging.fact.startswith("hangs: no answer within 2 s") and hanging.fix == "mount it"
    assert (well.level, well.fact) == ("ok", "fine")
    assert odd.level == "warning" and "broken in a new way" in odd.fact
    assert killed.level == "warning" and "ends with -9" in killed.fact
