"""compute-sanitizer finds nothing in the kernels: no access out of bounds, no race, nothing read
that was not written. Needs a GPU and the CUDA toolkit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        shutil.which("compute-sanitizer") is None, reason="compute-sanitizer is not installed"
    ),
]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_clean(seed: int, tool: str) -> None:
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    command += ["--kernel-regex", "kns=loopcoder", "--print-limit", "3"]
    script = Path(__file__).with_name("sanitized.py")
    done = subprocess.run(
        [*command, sys.executable, str(script), str(seed % 2**31)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[:6000] + done.stderr[-2000:]
    assert "0 errors" in done.stdout or "0 hazards" in done.stdout, done.stdout[-2000:]
