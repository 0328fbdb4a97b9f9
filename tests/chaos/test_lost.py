"""A peer, a writer or a disk that is gone: named, with the code that says what to do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from loopcoder.checkpoint import format as checkpoints
from tests.parts import one_of
from tests.train.conftest import (  # noqa: F401
    SMALL,
    Start,
    documents,
    environment,
    finish,
    start,
)

pytestmark = pytest.mark.chaos


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until a condition holds for a process that runs."""
    end = time.monotonic() + 250
    while not condition():
        assert time.monotonic() < end and process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


def saves(run_dir: Path) -> list[int]:
    return [c.step for c in checkpoints.complete(run_dir / "checkpoints")]


def environ_of(process: psutil.Process) -> dict[str, str]:
    """Return what a process has been given; of a writer that has just ended nothing."""
    with suppress(psutil.Error):
        return process.environ()
    return {}


def command_of(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@pytest.mark.parametrize(
    ("background", "victim"),
    one_of([("false", "0"), ("true", "1"), ("false", "1"), ("true", "0")]),
)
def test_a_rank_that_is_killed(
    start: Start,  # noqa: F811
    tmp_path: Path,
    victim: str,
    background: str,
) -> None:
    """In steps and saves, as it comes: 75, and the others do not wait for it."""
    run_dir = tmp_path / "run"
    options = ["parallel.nproc_per_node=2", "checkpoint.interval=2"]
    options.append(f"checkpoint.async_save={background}")
    process = start(run_dir, *options, "train.max_steps=1000")
    until(lambda: len(saves(run_dir)) > 1, process)
    ranks = [
        p
        for p in psutil.Process(process.pid).children(recursive=True)
        if environ_of(p).get("RANK") == victim and "multiprocessing" not in command_of(p)
    ]
    began = time.monotonic()
    ranks[0].kill()
    output = finish(process, code=75)
    assert time.monotonic() - began < 60
    assert f"rank {victim} was killed (SIGKILL)" in output
    assert "Traceback" not in output
    kept = saves(run_dir)
    again = ["train.max_steps=" + str(kept[-1] + 1)]
    output = finish(start(run_dir, *options, *again))
    assert f"step_{kept[-1]:08d}" in output


@pytest.mark.parametrize("number", one_of([signal.SIGKILL, signal.SIGSEGV]))
def test_a_writer_that_is_killed(
    start: Start,  # noqa: F811
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    """The process that writes in the background is a fork of the trainer."""
    run_dir = tmp_path / "run"
    options = ["checkpoint.interval=3", "checkpoint.async_save=true"]
    process = start(run_dir, *options, "train.max_steps=1000")
    trainer = psutil.Process(process.pid)
    until(lambda: len(saves(run_dir)) > 0, process)
    # each, since one of them may have written all before it is killed
    while process.poll() is None:
        with suppress(psutil.Error):
            for child in trainer.children():
                if child.cmdline() == trainer.cmdline():
                    child.send_signal(number)
        time.sleep(0.005)
    output = finish(process, code=75)
    assert f"{number.name} ended the writer of rank 0 (" in output
    assert "disk" not in output.split("could not save")[-1]
    assert saves(run_dir)


def test_the_process_of_the_results_that_is_killed(
    start: Start,  # noqa: F811
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    process = start(
        run_dir, "checkpoint.interval=3", "checkpoint.async_save=true", "train.max_steps=1000"
    )
    until(lambda: len(saves(run_dir)) > 0, process)
    children = psutil.Process(process.pid).children()
    (server,) = [c for c in children if "multiprocessing.spawn" in command_of(c)]
    server.kill()
    output = finish(process, code=75)
    assert "could not save" in output and "passes on what the writer of rank 0 (" in output


def test_ranks_whose_folders_are_not_the_same(
    documents: Path,  # noqa: F811
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    """Each node has a disk of its own under the name: it was saved as if all were there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(2):
        world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        options = [*SMALL, f"path={documents}", f"run_dir={tmp_path / f'disk_of_{rank}'}"]
        options += ["parallel.nproc_per_node=null", "checkpoint.visible_within_s=2"]
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "loopcoder", "train", *options],
                cwd=tmp_path,
                env=environment | world,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [finish(process, code=3) for process in processes]
    assert f"rank 1 ({os.uname().nodename}) does not see in {tmp_path}/disk_of_1" in outputs[0]
    assert "run_dir=DIR on a disk that all nodes share" in outputs[0]
    assert not list(tmp_path.glob("disk_of_*/checkpoints"))
