"""Results of background saves come back through a queue in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import tempfile
from pathlib import Path

import pytest
import torch

import loopcoder.train  # noqa: F401 - so that megatron-core can be imported
from loopcoder.checkpoint import shards, writers
from loopcoder.checkpoint.writers import use_result_queue
from loopcoder.storage.files import FileEntry, fault_of
from loopcoder.storage.signals import ASKS


def test_the_queue_is_reached_from_a_long_tmpdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    # where this process has its sockets so far
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)
    manager = use_result_queue(background=True)
    assert manager is not None
    try:
        filesystem_async._results_queue.put("written")
        assert filesystem_async._results_queue.get_nowait() == "written"
    finally:
        manager.shutdown()
        use_result_queue(background=False)
    assert list(folder.iterdir()) == []


def test_what_passes_results_on_imports_no_torch() -> None:
    """It took half a gigabyte per rank, and seconds of the first save."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    manager = use_result_queue(background=True)
    assert manager is not None
    try:
        filesystem_async._results_queue.put(torch.ones(3))
        assert torch.equal(filesystem_async._results_queue.get_nowait(), torch.ones(3))
        process = manager._process  # type: ignore[attr-defined]
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    finally:
        manager.shutdown()
        use_result_queue(background=False)


def test_what_writers_say_of_a_full_disk_is_left_to_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.getLogger("megatron.core.dist_checkpointing.strategies.filesystem_async")
    monkeypatch.setattr(log, "filters", [])
    writers.say_once_that_the_disk_is_full(tmp_path / "run")
    writers.say_once_that_the_disk_is_full(tmp_path / "run")  # once per process, whoever saves
    assert len(log.filters) == 1
    for free, lets_errors_through in ((writers.FULL_BYTES - 1, False), (1 << 40, True)):
        monkeypatch.setattr(writers, "free_bytes", lambda _, free=free: free)
        for level, passes in ((logging.WARNING, True), (logging.ERROR, lets_errors_through)):
            record = log.makeRecord(log.name, level, "f", 1, "message", (), None)
            assert bool(log.filter(record)) == passes


def test_the_queue_outlives_signals_to_the_whole_job() -> None:
    """Slurm, timeout(1) and a terminal signal every process: the save under way completes."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    heard: list[int] = []
    before = {n: signal.signal(n, lambda number, _: heard.append(number)) for n in ASKS}
    manager = use_result_queue(background=True)
    assert manager is not None
    try:
        for number in ASKS:
            os.kill(manager._process.pid, number)  # type: ignore[attr-defined]
        filesystem_async._results_queue.put("written")
        assert filesystem_async._results_queue.get_nowait() == "written"
        for number in ASKS:  # they ask the trainer as before
            os.kill(os.getpid(), number)
        assert heard == list(ASKS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        manager.shutdown()
        use_result_queue(background=False)


def test_a_writer_outlives_signals_to_the_whole_job(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writing, go_on = context.Event(), context.Event()

    def write() -> None:
        writing.set()
        go_on.wait(60)

    process = context.Process(target=writers.BackgroundWriter(write, tmp_path, 0))
    process.start()
    assert writing.wait(60) and process.pid
    for number in ASKS:
        os.kill(process.pid, number)
    go_on.set()
    process.join(60)
    assert process.exitcode == 0


def test_a_writer_hashes_what_it_wrote(tmp_path: Path, seed: int) -> None:
    """Reading a checkpoint again takes seconds, in which no step would be trained."""
    content = random.Random(seed).randbytes(5000)

    def write() -> None:
        for name in ("__1_0.distcp", "__1_1.distcp", "__11_0.distcp", ".metadata"):
            (tmp_path / name).write_bytes(content + name.encode())

    writer = writers.BackgroundWriter(write, tmp_path, 1)
    process = multiprocessing.get_context("fork").Process(target=writer)
    process.start()
    process.join(60)
    found = writer.hashed()
    assert set(found) == {"__1_0.distcp", "__1_1.distcp"}
    assert all(fault_of(tmp_path / name, entry) is None for name, entry in found.items())


def test_the_trainer_reads_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.dist, "get_rank", lambda: 1)
    for name in ("__1_0.distcp", "__1_1.distcp", "__0_0.distcp"):
        (tmp_path / name).write_bytes(b"x")
    hashed: FileEntry = {"bytes": 1, "xxh3_128": "as the writer says"}
    found = shards.written_here(tmp_path, {"__1_0.distcp": hashed}).entries
    assert found.keys() == {"__1_0.distcp", "__1_1.distcp"}
    assert found["__1_0.distcp"] == hashed and found["__1_1.distcp"] != hashed


def test_a_writer_that_fails_has_hashed_nothing(tmp_path: Path) -> None:
    writer = writers.BackgroundWriter(lambda: None, tmp_path / "gone", 0)
    process = multiprocessing.get_context("fork").Process(target=writer)
    process.start()
    process.join(60)
    assert writer.hashed() == {} and process.exitcode == 0
