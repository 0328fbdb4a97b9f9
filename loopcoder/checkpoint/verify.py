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
from loopcoder.checkpoint.agreed import of_rank_0
from loopcoder.checkpoint.choice import SetAside, newest_whole, set_aside
from loopcoder.checkpoint.damage import with_tensors
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.start import Start
from loopcoder.config.schema import Config


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
    return of_rank_0(lambda: with_tensors(checkpoint, facts))


def verified(
    start: Start | None, config: Config, accepted: Callable[[], None] = lambda: None
) -> tuple[Start | None, list[SetAside]]:
    """Return what a run starts from after comparing it, and what was set aside.

    Of its own checkpoints that is the newest that is whole. All ranks must call it; what rank 0
    sees on its disk counts.

    Args:
        accepted: Called on rank 0 before checkpoints of the run are set aside.

    Raises:
        InputError: that of another run is damaged, the chosen one, or all.
    """
    start = of_rank_0(lambda: start)
    if start is None:
        return None, []
    level, damaged = config.checkpoint.verify, dict[Path, list[str]]()
    while facts := faults_together(start.checkpoint, level):
        found = start.checkpoint
        if not start.resumes or found.step == config.checkpoint.step:
            raise layout.corrupt(found, facts)
        damaged[found.path] = facts
        older = of_rank_0(partial(_older, found, level, damaged))
        start = replace(start, checkpoint=older)
    chosen = start
    if not chosen.resumes:
        return chosen, []

    def leave_others() -> list[SetAside]:
        accepted()
        return set_aside(chosen.checkpoint, config.checkpoint, damaged)

    return chosen, of_rank_0(leave_others)


def _older(
    than: Checkpoint, level: Literal["hash", "size", "none"], damaged: dict[Path, list[str]]
) -> Checkpoint:
    """Return the newest that is whole, as far as rank 0 can tell alone.

    Raises:
        InputError: there is none, with what is wrong with all.
    """
    if (found := newest_whole(layout.complete(than.path.parent), level, damaged)) is None:
        raise layout.corrupt(than, damaged[than.path])
    return found


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
