"""A disk that fills up while a checkpoint is written: a clear error, and nothing lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopcoder.checkpoint import format as checkpoints
from tests.train.conftest import Start, documents, environment, finish, start  # noqa: F401

pytestmark = pytest.mark.chaos


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 5 MB: room for two checkpoints of the small model, not for three."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", folder], capture_output=True, check=False
    )
    if os.getuid() != 0 or mounted.returncode != 0:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("background", ["false", "true"])
def test_full_disk(start: Start, small_disk: Path, background: str) -> None:  # noqa: F811
    run_dir = small_disk / "run"
    options = ["train.max_steps=12", "checkpoint.interval=2", "checkpoint.keep=null"]
    options += [f"checkpoint.async_save={background}", "eval.at_end=false"]
    output = finish(start(run_dir, *options), code=76)
    assert "could not save" in output and "the disk is full" in output
    assert "Traceback" not in output.split("could not save")[-1]
    saved = checkpoints.complete(run_dir / "checkpoints")
    assert [c.step for c in saved] == [2, 4]
    for checkpoint in saved:
        assert not list(checkpoints.faults(checkpoint, "hash"))
    # with room again, the same command finishes
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    output = finish(start(run_dir, *options))
    assert "continues from" in output and "step_00000004" in output
