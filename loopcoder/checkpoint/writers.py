"""Processes that write checkpoints must not outlive the run they write for.

megatron-core hands write results from a forked writer to the trainer through a queue in a third,
spawned process, even when it writes in the trainer itself. After `kill -9` of the trainer both
would stay: the queue's process for ever, with the run's output pipe; the writer until it has
written into a folder that the restarted run may be writing as well.

Nor may they end before it: a scheduler sends its SIGTERM or SIGUSR1 to every process of a job, and
the save that is under way then is the one that counts.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import pickle
import queue
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

from loopcoder.checkpoint.shards import shard_entries
from loopcoder.storage.disk import free_bytes
from loopcoder.storage.files import FileEntry
from loopcoder.storage.process import serve_parent, use_short_socket_paths
from loopcoder.storage.signals import requests_held_back

_WRITERS = "megatron.core.dist_checkpointing.strategies.filesystem_async"
FULL_BYTES = 16 << 20
"""A disk with less than this free is taken for full."""


class _UnlessFull(logging.Filter):
    """Lets the errors of writers through unless the disk is full, which `save` says better."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or free_bytes(self.folder) >= FULL_BYTES


def say_once_that_the_disk_is_full(folder: Path) -> None:
    """Keep writers, also those that are forked from here, from saying in words of their own that
    there is no room in a folder: torch tells of a position in a file."""
    log = logging.getLogger(_WRITERS)
    for old in [f for f in log.filters if isinstance(f, _UnlessFull)]:
        log.removeFilter(old)
    log.addFilter(_UnlessFull(folder))


class BackgroundWriter:
    """A writer's work, bound to the life of the trainer: it writes the shards of a rank, and hashes
    them so that training need not wait for that."""

    def __init__(self, write: Callable[..., Any], folder: Path, rank: int):
        self.write, self.folder, self.rank = write, folder, rank
        self._hashed, self._tell = multiprocessing.Pipe(duplex=False)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Do the work, in a process that was forked."""
        serve_parent()  # which stops when this save is complete
        self.write(*args, **kwargs)
        with suppress(OSError):  # the trainer reads them itself, and says what is wrong
            self._tell.send(shard_entries(self.folder, self.rank))

    def hashed(self) -> dict[str, FileEntry]:
        """Return the entries of the shards once their writer has ended; without those that it could
        not read."""
        found: dict[str, FileEntry] = self._hashed.recv() if self._hashed.poll() else {}
        return found


class _Sealed:
    """A queue of another process, which passes results on without importing torch to read them:
    that took half a gigabyte, and the first save seconds."""

    def __init__(self, passed_on: Any):
        self._passed_on = passed_on

    def put(self, result: Any) -> None:
        self._passed_on.put(pickle.dumps(result))

    def get_nowait(self) -> Any:
        return pickle.loads(self._passed_on.get_nowait())  # our own writer's


def use_result_queue(background: bool) -> SyncManager | None:
    """Give megatron-core the queue for write results; the caller keeps what is returned as long as
    it saves."""
    writers: Any = importlib.import_module(_WRITERS)
    if not background:
        writers._results_queue = queue.Queue()
        return None
    use_short_socket_paths()
    manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
    with requests_held_back():
        manager.start(serve_parent)
    writers._results_queue = _Sealed(manager.Queue())
    return manager
