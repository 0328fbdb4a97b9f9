"""Copies of a run's checkpoints in a store: which are made, and when a run may end without them.

One copy is under way at a time, and saves and training do not wait for it. What is saved meanwhile
waits for its end; a newer checkpoint takes its place, unless it is one of those that stay for ever.
Ranks agree on the next one where they meet anyway, at a save.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from loopcoder.checkpoint.agreed import of_rank_0
from loopcoder.checkpoint.copies.lacking import (
    lacking,
    manifest_digest,
    not_copied,
    prune_copies,
    stays,
    steps_in_words,
)
from loopcoder.checkpoint.copies.owner import Hold, NotOurs
from loopcoder.checkpoint.copies.sending import Sender
from loopcoder.checkpoint.copies.stored import open_store
from loopcoder.checkpoint.format import MANIFEST, step_folder
from loopcoder.config.schema import CheckpointConfig
from loopcoder.errors import LoopcoderError, Preempted, Unreachable
from loopcoder.storage.writing import WritableStore

_TICK_S = 0.5
_SAY_EVERY_S = 15.0


@dataclass(frozen=True)
class _Told:
    """What a rank tells the others."""

    is_busy: bool
    failed: dict[int, str]
    stuck: str | None
    fault: str | None
    """What keeps it from its store just now."""
    refused: NotOurs | None
    """Why nothing more is sent (rank 0)."""
    digests: dict[int, str]
    """Of manifests, by step (rank 0)."""


class Copies:
    """The copies that a run makes; without `checkpoint.store` none. All ranks call every method but
    `poll`."""

    def __init__(
        self,
        asked: CheckpointConfig,
        run_dir: Path,
        report: Callable[..., None],
        spared: int | None = None,
    ):
        """
        Args:
            report: Called with an event's kind and fields.
            spared: Step where the run begins to decay, whose copy stays.
        """
        self._asked, self._run_dir, self._report, self._spared = asked, run_dir, report, spared
        self._due: list[int] = []
        self._newest = 0
        self._sender: Sender | None = None
        self._failed: dict[int, str] = {}
        self._away: tuple[int, float] | None = None
        self.in_use: Collection[int] = ()
        """Steps whose folders are being copied, which are not to be deleted."""
        if asked.store is None:
            return
        store = open_store(asked.store, lambda _: None)  # it is said by events
        self._is_main = dist.get_rank() == 0
        start = of_rank_0(lambda: uuid.uuid4().hex)
        self._hold = Hold(store, run_dir, asked, start)
        self._sender = Sender(
            store,
            run_dir,
            dist.get_rank(),
            dist.get_world_size(),
            visible_within_s=asked.visible_within_s,
            completed=lambda step: self._retain(store, step),
            hold=self._hold,
        )

    def make_up(self, step: int) -> None:
        """Copy what the store lacks of the checkpoints up to the one that the run starts from.

        Raises:
            InputError: the store is another run's by now.
        """
        if self._sender is not None:
            self._newest = step
            self._due = of_rank_0(partial(self._lacking, step))
            self._next()

    def _lacking(self, step: int) -> list[int]:
        store = open_store(str(self._asked.store))
        try:
            self._hold.confirm()
            return lacking(store, self._asked, self._run_dir, step)
        except Unreachable:  # which is said when it is sent
            return [step] if (step_folder(self._run_dir, step) / MANIFEST).exists() else []

    def saved(self, step: int) -> None:
        """Copy a checkpoint that was just completed, now or when the one before is copied.

        Raises:
            InputError: the store is another run's by now.
        """
        if self._sender is not None:
            self._newest = step
            self._due = [s for s in self._due if stays(s, self._asked)] + [step]
            self._next()

    def poll(self) -> None:
        """Record what has happened meanwhile; call it once per step."""
        while self._sender is not None and not self._sender.news.empty():
            self._tell(*self._sender.news.get())

    def _tell(self, kind: str, fields: dict[str, Any]) -> None:
        self._report(kind, **fields)
        if self._is_main and kind != "checkpoint_copied":
            _say(_in_words(kind, fields, str(self._asked.store)))

    def _tell_of_others(self, told: Sequence[_Told]) -> None:
        """Record on rank 0, once, that only other ranks do not reach the store."""
        now, away = time.monotonic(), [n for n, one in enumerate(told) if one.fault]
        if away and away[0] > 0 and self._away is None:
            self._away = (away[0], now)
            self._tell("store_unreachable", {"rank": away[0], "why": told[away[0]].fault})
        elif not away and self._away is not None:
            (rank, since), self._away = self._away, None
            self._tell("store_reachable", {"rank": rank, "after_s": round(now - since, 1)})

    def finish(self, tick: Callable[[], None], stopping: Callable[[], bool]) -> None:
        """Wait until what is due is copied.

        Args:
            tick: Called again and again meanwhile.
            stopping: Says whether the run is asked to stop; the same on all ranks.

        Raises:
            Preempted: it was asked to stop.
            InputError: the store is another run's by now.
            LoopcoderError: the store does not answer, or a checkpoint cannot be copied.
        """
        if self._sender is None:
            return
        said = time.monotonic()
        while True:
            told = self._next()
            self.poll()
            steps = sorted({*self.in_use, *self._due})
            if stuck := next((one.stuck for one in told if one.stuck), None):
                raise not_copied(steps, str(self._asked.store), stuck)
            if not self.in_use:
                break
            if stopping():
                why = "its copy is not complete; the checkpoint is"
                raise _stopped(steps, str(self._asked.store), why)
            tick()
            if self._is_main and time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                _say(f"the run is done; it sends {self._sender.doing}")
            self._sender.wait(_TICK_S)
        failed = [s for s in sorted(self._failed) if s == self._newest or stays(s, self._asked)]
        if failed:
            raise not_copied(failed, str(self._asked.store), self._failed[failed[-1]])

    def close(self) -> None:
        """Send nothing more."""
        if self._sender is not None:
            self._sender.close()

    def _next(self) -> list[_Told]:
        """Begin with what is due if nothing is under way; return what the ranks say."""
        assert self._sender is not None
        sender = self._sender
        digests = self._digests(sender) if self._is_main else {}
        mine = _Told(
            sender.is_busy,
            dict(sender.failed),
            sender.stuck(),
            sender.fault,
            sender.refused,
            digests,
        )
        told: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(told, mine)
        if told[0].refused is not None:
            raise told[0].refused
        if self._is_main:
            self._tell_of_others(told)
        failed = {step: why for one in told for step, why in one.failed.items()}
        self._sender.give_up(list(failed))
        for step in failed.keys() - self._failed.keys():
            self._failed[step] = failed[step]
            self._report("checkpoint_not_copied", step=step, why=failed[step])
        if any(one.is_busy for one in told):
            return told
        self.in_use = ()
        if self._due:
            jobs = {s: told[0].digests[s] for s in reversed(self._due) if s in told[0].digests}
            self._due, self.in_use = [], list(jobs)
            self._sender.send(jobs)
        return told

    def _retain(self, store: WritableStore, step: int) -> None:
        """Remove the copies that do not stay (in the thread of rank 0). It is tried once."""
        assert self._sender is not None
        try:
            prune_copies(store, self._asked, self._spared, step, {step, *self.in_use, *self._due})
        except (LoopcoderError, OSError) as error:  # deleting is never worth a run
            self._sender.news.put(("copy_not_deleted", {"why": str(error).splitlines()[0]}))

    def _digests(self, sender: Sender) -> dict[int, str]:
        found = {}
        for step in self._due:
            try:
                found[step] = manifest_digest(self._run_dir, step)
            except OSError as error:
                sender.failed[step] = str(error)
        return found


def _stopped(steps: Sequence[int], store: str, why: str) -> Preempted:
    return Preempted.of(
        f"stopped while {steps_in_words(steps)} was copied to {store}: {why}",
        "the run was asked to stop; nothing is lost",
        "start the same command again to complete it",
    )


def _in_words(kind: str, fields: dict[str, Any], store: str) -> str:
    if kind == "store_unreachable":
        return (
            f"rank {fields['rank']}: {fields['why']}; training goes on, and the copy when "
            "the store answers"
        )
    if kind == "store_reachable":
        return f"rank {fields['rank']}: {store} answers again after {fields['after_s']:g} s"
    return f"old copies in {store} stay: {fields['why']}"


def _say(text: str) -> None:
    print(f"checkpoint: {text}", file=sys.stderr, flush=True)
