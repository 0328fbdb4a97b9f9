"""`loopcoder generate` on processes that share a model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hf.folders import made

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.mark.dist_full
def test_two_processes_answer_as_one_does(ranks: Any, tmp_path: Path) -> None:
    """In fp32, with rank 0 printing alone; both read what stood on standard input."""
    # a fixed seed: of drawn weights a few in ten thousand have two best tokens that round alike
    checkpoint = made(tmp_path, 5, num_loops=3).checkpoint
    environ = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])

    def generate(*arguments: str) -> str:
        command = [sys.executable, "-m", "loopcoder", "generate", f"checkpoint={checkpoint.path}"]
        command += ["prompt=def add(a, b):", "file=-", "generate.max_tokens=20", *arguments]
        found = subprocess.run(
            command, check=False, input="loop gate", env=environ, capture_output=True, text=True
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    assert generate("parallel.tp=2") == generate()
