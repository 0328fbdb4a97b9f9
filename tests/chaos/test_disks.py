"""A disk that fails a run: full, read-only, its folders taken away, its clock set back.

The cause is named on all ranks with the right code, older checkpoints stay, and the same command
goes on to the curve of a run that nothing happened to, bit for bit.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loopcoder.checkpoint import format as checkpoints
from loopcoder.errors import EXIT_NO_RETRY, EXIT_RETRY
from loopcoder.metrics.writer import read_metrics
from tests.chaos.kills import INTERVAL, Victim, assert_alike, saved
from tests.chaos.worlds import Operation, Stop, World, resume
from tests.parts import one_of

pytestmark = pytest.mark.chaos

SAVES = [(2, True), (1, False), (2, False), (1, True)]
"""Ranks, and whether saves are in the background."""
WITHOUT_PRIVILEGES = """
import ctypes
# root may write everywhere: capset(2), version 3, no capability
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
"""
CLOCK_SET_BACK = """
import time
now, calls = time.time, [0]
def earlier():
    calls[0] += 1
    return now() - 3600 * calls[0]
time.time = earlier
"""


@pytest.fixture
def victim(whole: dict[int, Victim], tmp_path: Path) -> Callable[..., Victim]:
    """Make a run that is like one that nothing happens to."""

    def make(ranks: int, background: bool, folder: Path = tmp_path) -> Victim:
        like = whole[ranks]
        run_dir = folder / "run"
        return Victim(like.server, run_dir, ranks, background, random.Random(0), {}, like.options)

    return make


def when_stopped(world: World, act: Callable[[], object]) -> dict[int, int]:
    """Do something while a rank stands where it stops, and let it go on; return the codes."""
    stopped: list[Operation] = []
    for operation in world.operations():
        if operation.is_stopped:
            stopped.append(operation)
            act()
            resume(operation.pid)
    codes = world.wait()
    assert len(stopped) == 1, world.outputs()
    return codes


def assert_told(world: World, codes: dict[int, int], code: int, *texts: str) -> None:
    said = world.outputs()
    assert set(codes.values()) == {code}, (codes, said)
    for text in texts:
        assert text in said
    assert "Traceback" not in said, said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for two checkpoints of the small model."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", folder]
    if os.getuid() != 0 or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize(("ranks", "background"), one_of(SAVES[::2]))
def test_full_disk(
    victim: Callable[..., Victim],
    whole: dict[int, Victim],
    small_disk: Path,
    ranks: int,
    background: bool,
) -> None:
    run = victim(ranks, background, small_disk)
    run.options = [*run.options, "checkpoint.keep=null"]
    world = run.start()
    codes = world.finish()
    assert_told(world, codes, EXIT_NO_RETRY, "could not save", "the disk is full")
    assert [c.step for c in saved(run.run_dir)] == [INTERVAL, 2 * INTERVAL]
    for checkpoint in saved(run.run_dir):
        assert list(checkpoints.faults(checkpoint, "hash")) == []
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    run.options = whole[ranks].options
    run.finish()
    assert_alike(run.run_dir, whole[ranks].run_dir)


@pytest.mark.parametrize("place", one_of(["checkpoints", "."]))
@pytest.mark.parametrize(("ranks", "background"), one_of(SAVES[:2]))
def test_a_folder_that_becomes_read_only(
    victim: Callable[..., Victim],
    whole: dict[int, Victim],
    ranks: int,
    background: bool,
    place: str,
) -> None:
    run = victim(ranks, background)
    folder = run.run_dir / place
    second = f"checkpoints/step_{2 * INTERVAL:08d}"
    name = f"mkdir {second}" if place == "checkpoints" else f"write {second}/state.json.tmp"
    world = run.start(Stop(0, name), prelude=WITHOUT_PRIVILEGES)
    codes = when_stopped(world, lambda: folder.chmod(0o555))
    folder.chmod(0o755)
    assert_told(world, codes, EXIT_NO_RETRY, "could not save", "Permission denied")
    assert [c.step for c in saved(run.run_dir)] == [INTERVAL]
    run.finish()
    assert_alike(run.run_dir, whole[ranks].run_dir)


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("write {}/__0_0.distcp", "{}"),
        ("write {}/.metadata.tmp", "{}"),
        ("write {}/state.json.tmp", "{}"),
        ("read {}/__0_0.distcp", "{}/__0_0.distcp"),
        ("write {}/manifest.json.tmp", "{}"),
        ("write {}/manifest.json.tmp", "checkpoints"),
    ],
)
@pytest.mark.parametrize(("ranks", "background"), one_of(SAVES))
def test_what_is_taken_away_under_a_save(
    victim: Callable[..., Victim],
    whole: dict[int, Victim],
    ranks: int,
    background: bool,
    name: str,
    taken: str,
) -> None:
    """Whatever of it is gone, and whoever finds it out."""
    run = victim(ranks, background)
    second = f"checkpoints/step_{2 * INTERVAL:08d}"
    path = run.run_dir / taken.format(second)

    def take() -> None:
        path.unlink() if path.is_file() else shutil.rmtree(path)

    world = run.start(Stop(0, name.format(second)))
    codes = when_stopped(world, take)
    assert_told(world, codes, EXIT_RETRY)
    cause = rf"could not save {run.run_dir / second}: (\S+ is missing|rank 0 .* has not written)"
    assert re.search(cause, world.outputs()), world.outputs()
    run.finish()
    assert_alike(run.run_dir, whole[ranks].run_dir)


@pytest.mark.parametrize(("ranks", "background"), one_of(SAVES[:2]))
def test_a_clock_that_is_set_back(
    victim: Callable[..., Victim],
    whole: dict[int, Victim],
    ranks: int,
    background: bool,
) -> None:
    """An hour at each look, and what was written first looks newest."""
    run = victim(ranks, background)
    world = run.start(Stop(0, "rename checkpoints/step_00000009/state.json.tmp"))
    codes = when_stopped(world, world.kill)
    assert set(codes.values()) == {-9}
    for checkpoint in saved(run.run_dir):
        for path in (checkpoint.path, *checkpoint.path.iterdir()):
            os.utime(path, (10**9 - checkpoint.step, 10**9 - checkpoint.step))
    world = run.start(prelude=CLOCK_SET_BACK)
    assert set(world.finish().values()) == {0}, world.outputs()
    events = read_metrics(run.run_dir / "events.jsonl")
    assert [e["step"] for e in events if e["kind"] == "run_continues"] == [2 * INTERVAL]
    assert_alike(run.run_dir, whole[ranks].run_dir)
