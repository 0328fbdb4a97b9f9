"""One rank's part in copying checkpoints to a store, in a thread, while training goes on.

Ranks do not talk to each other here: they see in the store how far the others are.

    each rank   its files, then a receipt, whose name has the hash of the manifest
    rank 0      when all receipts are there and the sizes are right: the run's own files, then the
                manifest, without which a copy does not count

A receipt that an interrupted copy left is as good as a new one: its files need not be sent again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import xxhash

from loopcoder.checkpoint.copies.owner import Hold, NotOurs
from loopcoder.checkpoint.copies.run_files import send_run_files
from loopcoder.checkpoint.copies.stored import StoredCheckpoint, copy_of
from loopcoder.checkpoint.format import MANIFEST, entries, step_folder, writer_of
from loopcoder.errors import LoopcoderError
from loopcoder.storage.files import FileEntry
from loopcoder.storage.remote import WHILE_TRAINING
from loopcoder.storage.writing import WritableStore

_LOOK_EVERY_S = 0.5
_RECEIPT = ".sent-"
PATIENCE_S = 60.0
"""Seconds of nothing but errors after which the end of a run no longer waits: a server that is
started anew takes less."""
SILENCE_S = 300.0
"""The same where nothing is answered at all: a part of a file takes long on a slow line."""


class _Ends(Exception):
    """The run is being left."""


class _NotSent(Exception):
    """A checkpoint cannot be copied any more; it says why."""


class Sender:
    """Sends the files of one rank, checkpoint after checkpoint.

    A store that fails is tried again until it answers.
    """

    def __init__(
        self,
        store: WritableStore,
        run_dir: Path,
        rank: int = 0,
        world: int = 1,
        *,
        visible_within_s: float = 60.0,
        completed: Callable[[int], None] = lambda step: None,
        hold: Hold | None = None,
    ):
        """
        Args:
            store: That of the run.
            rank: Of so many that send together.
            visible_within_s: Seconds within which this rank sees what rank 0 wrote on the disk.
            completed: Called in the thread of rank 0 with the step of a copy that is complete.
            hold: Says whether the store is this start's; None: nobody else sends to it.
        """
        self._store, self._run_dir, self._rank, self._world = store, run_dir, rank, world
        self._visible_within_s, self._completed = visible_within_s, completed
        self._hold = hold
        self._left = threading.Event()
        self._thread: threading.Thread | None = None
        self._moved = time.monotonic()
        self._fault: tuple[float, str] | None = None
        self._lock = threading.Lock()
        self._given_up: set[int] = set()
        self.failed: dict[int, str] = {}
        """What this rank could not send and will not, by step."""
        self.refused: NotOurs | None = None
        """Why nothing more is sent (rank 0)."""
        self.news: SimpleQueue[tuple[str, dict[str, Any]]] = SimpleQueue()
        """Events for the main thread to record: their kind and fields."""
        self.doing = ""
        """What is sent just now, for people."""

    def send(self, jobs: Mapping[int, str]) -> None:
        """Begin to send checkpoints, of which all are sent before the next call.

        Args:
            jobs: By step the hash of its manifest, in the order in which they are sent.
        """
        assert not self.is_busy
        self._move()
        self._thread = threading.Thread(
            target=self._run, args=(dict(jobs),), name="loopcoder-copy", daemon=True
        )
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether something is being sent."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def fault(self) -> str | None:
        """What the store answers instead of taking what is sent; None: it takes it."""
        fault = self._fault
        return None if fault is None else fault[1]

    def stuck(self) -> str | None:
        """Return why it is not worth while to wait any longer; None: it is."""
        now, fault = time.monotonic(), self._fault
        if not self.is_busy:
            return None
        if fault is not None and now - fault[0] > PATIENCE_S:
            return fault[1]
        if now - self._moved > SILENCE_S:
            return f"{self.doing}: nothing has come through for {SILENCE_S:g} s"
        return None

    def wait(self, seconds: float) -> None:
        """Wait for what is sent, and at most so long."""
        if self._thread is not None:
            self._thread.join(seconds)

    def give_up(self, steps: Sequence[int]) -> None:
        """Do not wait for the other ranks' files of these steps: one of them has failed."""
        with self._lock:
            self._given_up |= set(steps)

    def close(self) -> None:
        """Send nothing more; the request that is under way ends with the process."""
        self._left.set()

    def _run(self, jobs: Mapping[int, str]) -> None:
        for step, digest in jobs.items():
            try:
                self._send(step, digest)
            except _Ends:
                return
            except NotOurs as error:
                self.refused = error
                return
            except Exception as error:  # whatever it is: rank 0 would wait for ever
                self.failed[step] = f"rank {self._rank}: {_said(error)}"
            finally:
                self.doing = ""

    def _send(self, step: int, digest: str) -> None:
        began, folder = time.monotonic(), step_folder(self._run_dir, step)
        content = self._manifest(folder, digest)
        files, stored = entries(content), copy_of(self._store, step)
        self._look_whose(step)
        if self._surely(stored.manifest) == content:
            return
        self._clear(stored, step, content, digest)
        receipt = self._receipt(digest, self._rank)
        if self._surely(lambda: stored.store.found(receipt, ())) is None:
            for name in sorted(n for n in files if writer_of(n) % self._world == self._rank):
                self.doing = f"{stored.url}/{name}"
                self._upload(stored.store, folder / name)
            self._surely(lambda: stored.store.write(receipt, b"", ()))
        if self._rank == 0:
            self._complete(stored, step, content, files, digest)
            size = sum(entry["bytes"] for entry in files.values())
            seconds = round(time.monotonic() - began, 3)
            told = {"step": step, "path": stored.url, "bytes": size, "seconds": seconds}
            self.news.put(("checkpoint_copied", told))
            self._completed(step)

    def _look_whose(self, step: int) -> None:
        """Go on only where the store is this start's; rank 0 finds out whose it is else."""
        if self._hold is None:
            return
        if self._rank == 0:
            self._surely(self._hold.confirm)
            return
        while not self._surely(self._hold.is_held):
            self._pause(step)

    def _manifest(self, folder: Path, digest: str) -> bytes:
        """Return the manifest that rank 0 has written, once this rank sees it."""
        until = time.monotonic() + self._visible_within_s
        while True:
            try:
                content = (folder / MANIFEST).read_bytes()
            except OSError as error:
                fact = str(error)
            else:
                if xxhash.xxh3_128_hexdigest(content) == digest:
                    return content
                fact = f"{folder / MANIFEST} is not the one that was written"
            if time.monotonic() > until:
                raise _NotSent(fact)
            self._pause()

    def _receipt(self, digest: str, rank: int) -> str:
        return f"{_RECEIPT}{digest}-{rank}-of-{self._world}"

    def _clear(self, stored: StoredCheckpoint, step: int, content: bytes, digest: str) -> None:
        """See to it that no manifest counts while its files are replaced by others: rank 0 removes
        what an earlier save of this step left."""
        if self._rank == 0:
            there = self._surely(stored.store.sizes)
            mine = {self._receipt(digest, rank) for rank in range(self._world)}
            old = {n for n in there if n.startswith(_RECEIPT)} - mine
            old |= {MANIFEST} & there.keys()
            self._surely(lambda: stored.store.remove(sorted(old), ()))
            return
        while self._surely(stored.manifest) not in (None, content):
            self._pause(step)

    def _complete(
        self,
        stored: StoredCheckpoint,
        step: int,
        content: bytes,
        files: Mapping[str, FileEntry],
        digest: str,
    ) -> None:
        """Wait for the files of all ranks, and make them a copy that counts."""
        receipts = {self._receipt(digest, rank) for rank in range(self._world)}
        while not receipts <= (there := self._surely(stored.store.sizes)).keys():
            self.doing = f"the other ranks' files of {stored.url}"
            self._pause(step)
        wrong = [name for name, entry in files.items() if there.get(name) != entry["bytes"]]
        if wrong:
            self._surely(lambda: stored.store.remove(receipts, ()))
            raise _NotSent(f"{stored.url}/{wrong[0]} has not the size that was sent")
        self._look_whose(step)
        self.doing = f"the run's own files to {self._store.url}"
        self._surely(lambda: send_run_files(self._store, self._run_dir))
        others = there.keys() - files.keys() - receipts
        self._surely(lambda: stored.store.remove(others, ()))
        self._surely(lambda: stored.store.write(MANIFEST, content, ()))
        self._surely(lambda: stored.store.remove(receipts, ()))

    def _upload(self, store: WritableStore, file: Path) -> None:
        self._surely(lambda: store.upload(file, file.name, (), self._move))

    def _move(self) -> None:
        self._moved = time.monotonic()

    def _surely[T](self, once: Callable[[], T]) -> T:
        """Return what `once` returns when the store answers."""
        pauses: Iterator[float] = chain(WHILE_TRAINING, repeat(WHILE_TRAINING[-1]))
        while True:
            if self._left.is_set():
                raise _Ends
            try:
                result = once()
            except NotOurs:
                raise
            except LoopcoderError as error:
                fact = str(error).splitlines()[0]
                if self._fault is None:
                    self.news.put(("store_unreachable", {"rank": self._rank, "why": fact}))
                self._fault = (time.monotonic() if self._fault is None else self._fault[0], fact)
                if self._left.wait(next(pauses)):
                    raise _Ends from error
                continue
            self._move()
            if self._fault is not None:
                after_s = round(time.monotonic() - self._fault[0], 1)
                self._fault = None
                self.news.put(("store_reachable", {"rank": self._rank, "after_s": after_s}))
            return result

    def _pause(self, step: int | None = None) -> None:
        if self._left.wait(_LOOK_EVERY_S):
            raise _Ends
        with self._lock:
            if step in self._given_up:
                raise _NotSent(f"another rank did not send its files of step {step}")


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, _NotSent | OSError) else repr(error)
