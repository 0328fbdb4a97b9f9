"""What takes minutes says so first: what each target of the Makefile would run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("install", "5.6 GB"),
        ("kernels", "installing nvcc"),
        ("kernels", "sources, which takes a minute or two"),
        ("test-data", "5.6 GB"),
        ("train", "5.6 GB"),  # on a fresh clone, which it installs first
    ],
)
def test_what_takes_minutes_says_so(tmp_path: Path, target: str, says: str) -> None:
    done = subprocess.run(
        ["make", "-n", target, f"VENV={tmp_path}/venv"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    before, found, after = done.stdout.partition(says)
    assert found and "echo" in before.splitlines()[-1]
    assert "pip install" in after or "build_ext" in after
