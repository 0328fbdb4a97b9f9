"""All ranks compare the checkpoint that a run starts from with its manifest, and agree on another
one where it is damaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.choice import SetAside, newest_whole, set_aside
from loopcoder.checkpoint.damage import with_tensors
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.start import Start
from loopcoder.config.schema import Config
from loopcoder.errors import InputError, Problem


def faults_together(checkpoint: Checkpoint, level: Literal["hash", "size", "none"]) -> list[str]:
    """Return what is wrong with a checkpoint, the same on all ranks, each of which reads its part.

    All ranks must call it.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, list(layout.faults(checkpoint, level, rank, size)))
    facts = list(dict.fromkeys(fact for part in gathered for fact in part))
    if not facts:
        return []
    return _of_main(lambda: with_tensors(checkpoint, facts))


def verified(start: Start | None, config: Config) -> tuple[Start | None, list[SetAside]]:
    """Return what a run starts from after comparing it, and what was set aside.

    Of its own checkpoints that is the newest that is whole. All ranks must call it; what rank 0
    sees on its disk counts.

    Raises:
        InputError: that of another run is damaged, the chosen one, or all.
    """
    start = _of_main(lambda: start)
    if start is None:
        return None, []
    level, damaged = config.checkpoint.verify, dict[Path, list[str]]()
    while facts := faults_together(start.checkpoint, level):
        found = start.checkpoint
        if not start.resumes or found.step == config.checkpoint.step:
            raise layout.corrupt(found, facts)
        damaged[found.path] = facts
        older = _of_main(partial(_older, found, level, damaged))
        if not isinstance(older, Checkpoint):
            raise InputError(older)
        start = replace(start, checkpoint=older)
    chosen = start
    if not chosen.resumes:
        return chosen, []
    return chosen, _of_main(lambda: set_aside(chosen.checkpoint, config.checkpoint, damaged))


def _older(
    than: Checkpoint, level: Literal["hash", "size", "none"], damaged: dict[Path, list[str]]
) -> Checkpoint | list[Problem]:
    """Return the newest that is whole, as far as rank 0 can tell alone; else what is wrong with
    all."""
    own = layout.complete(than.path.parent)
    try:
        return (
            newest_whole(own, level, damaged) or layout.corrupt(than, damaged[than.path]).problems
        )
    except InputError as error:
        return error.problems


def report(
    run_dir: Path,
    aside: Sequence[SetAside],
    event: Callable[..., None],
    say: Callable[[str], None],
) -> None:
    """Record and say which checkpoints of a run are not used (rank 0)."""
    for path in layout.incomplete(run_dir / "checkpoints"):
        event("checkpoint_incomplete", path=str(path))
        say(f"{path.name} has no manifest: a save was interrupted; it is not used")
    for one in aside:
        now = None if one.now is None else str(one.now)
        event("checkpoint_set_aside", path=str(one.path), now=now, cause=one.kind, why=one.why)
        say(str(one))


def _of_main[T](value: Callable[[], T]) -> T:
    """Return what rank 0 makes of this, on all ranks."""
    out: list[Any] = [value() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(out)
    result: T = out[0]
    return result
