"""Which checkpoints of a run its store lacks or need not keep, and copying them when it is over."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import xxhash

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.copies.owner import Hold, check_owner, claim
from loopcoder.checkpoint.copies.sending import Sender
from loopcoder.checkpoint.copies.stored import copies, copy_of, open_store, why_aside
from loopcoder.checkpoint.format import MANIFEST, Checkpoint, step_folder
from loopcoder.checkpoint.pruning import kept
from loopcoder.config.schema import CheckpointConfig
from loopcoder.errors import EXIT_RETRY, LoopcoderError
from loopcoder.storage.writing import WritableStore

_TICK_S = 0.5


class NotCopied(LoopcoderError):
    """A checkpoint is complete on the disk and has no copy; the same command tries again."""

    exit_code = EXIT_RETRY


def copy_rest(
    asked: CheckpointConfig,
    run_dir: Path,
    say: Callable[[str], None],
    report: Callable[..., None],
    spared: int | None,
) -> Iterator[Literal[True]]:
    """Copy, in one process, what the store lacks of a run that has nothing left to train; then
    remove the copies that do not stay.

    Args:
        report: Called with an event's kind and fields.
        spared: Step where the run begins to decay, whose copy stays.

    Yields now and then, as long as the copy moves.

    Raises:
        NotCopied: the store does not answer, or a checkpoint cannot be copied.
        InputError: the store is not this run's, or not any more.
    """
    if asked.store is None:
        return
    store = open_store(asked.store, lambda _: None)
    steps = lacking(store, asked, run_dir)
    if not steps:
        return
    check_owner(store, run_dir, asked)
    claim(store, run_dir)
    say(f"copying {steps_in_words(steps)} to {asked.store}")
    sender = Sender(store, run_dir, hold=Hold(store, run_dir, asked, uuid.uuid4().hex))
    sender.send({step: manifest_digest(run_dir, step) for step in reversed(steps)})
    try:
        while sender.is_busy:
            yield True
            sender.wait(_TICK_S)
            if (stuck := sender.stuck()) is not None:
                raise not_copied(steps, asked.store, stuck)
        if sender.refused is not None:
            raise sender.refused
    finally:
        sender.close()
        while not sender.news.empty():
            kind, fields = sender.news.get()
            report(kind, **fields)
    if sender.failed:
        step, why = max(sender.failed.items())
        raise not_copied([step], asked.store, why)
    newest = layout.complete(run_dir / "checkpoints")[-1].step
    try:
        prune_copies(store, asked, spared, newest, {newest})
    except (LoopcoderError, OSError) as error:  # nothing is lost by it
        why = str(error).splitlines()[0]
        report("copy_not_deleted", why=why)
        say(f"old copies in {asked.store} stay: {why}")


def lacking(
    store: WritableStore, asked: CheckpointConfig, run_dir: Path, upto: int | None = None
) -> list[int]:
    """Return the steps of which the store should have a copy and has none, oldest first: of the
    newest checkpoint, and of those that stay for ever.

    Raises:
        LoopcoderError: the store fails.
    """
    found = [c for c in layout.complete(run_dir / "checkpoints") if upto is None or c.step <= upto]
    wanted = [c for c in found if c is found[-1] or stays(c.step, asked)]
    return [
        c.step
        for c in wanted
        if copy_of(store, c.step).manifest() != (c.path / MANIFEST).read_bytes()
    ]


def prune_copies(
    store: WritableStore,
    asked: CheckpointConfig,
    spared: int | None,
    newest: int,
    in_use: Collection[int],
) -> None:
    """Remove the copies of up to a step that do not stay, and what interrupted ones left.

    Raises:
        LoopcoderError: the store fails.
    """
    if asked.store_keep is None:
        return
    there = [one for one in copies(store) if one.step <= newest]
    whole = [one for one in there if one.manifest() is not None]
    as_local = [Checkpoint(Path(one.url), one.step) for one in whole]
    kept_steps = {*kept(as_local, replace(asked, keep=asked.store_keep), spared), *in_use}
    for one in there:
        if one.step not in kept_steps and (one in whole or why_aside(one.store.sizes()) is None):
            one.remove()


def not_copied(steps: Sequence[int], store: str, why: str) -> NotCopied:
    """Return the error that a run ends without its copies."""
    return NotCopied.of(
        f"{steps_in_words(steps)} could not be copied to {store}: {why}",
        "the run is done and its checkpoints are complete on the disk, but the store has no copy",
        "the same command, once the store answers, copies it; checkpoint.store=null goes without",
    )


def stays(step: int, asked: CheckpointConfig) -> bool:
    return asked.keep_every is not None and step % asked.keep_every == 0


def manifest_digest(run_dir: Path, step: int) -> str:
    return xxhash.xxh3_128_hexdigest((step_folder(run_dir, step) / MANIFEST).read_bytes())


def steps_in_words(steps: Sequence[int]) -> str:
    numbers = ", ".join(map(str, steps))
    return f"the checkpoint of step {numbers}" if len(steps) == 1 else f"checkpoints {numbers}"
