"""Where a run stood before a step, as far as its folder says: by its checkpoints and its config."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.copies.places import find_at
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.rewind import last_before
from loopcoder.config.schema import Config
from loopcoder.data.sampler import Position, enter_stage, position_at
from loopcoder.errors import InputError


@dataclass(frozen=True)
class Stand:
    """A run before a step."""

    config: Config
    """What it was, or would be, trained with at this step."""
    position: Position
    notes: list[str] = field(default_factory=list)
    """What makes it uncertain."""


def stand_before(run_dir: Path, step: int, config: Config | None = None) -> Stand:
    """Return where a run stood, or will stand, before a step.

    Args:
        step: From 1, trained already or not.
        config: What the run is trained with; None: what its folder says. A checkpoint has the
            config of the steps before it, the folder that of the newest command.

    Raises:
        InputError: the run branched from another one after this step, or a file is damaged.
    """
    saved = layout.complete(run_dir / "checkpoints")
    before = last_before(run_dir, step)
    after = [c for c in saved if c.step >= step]
    if config is None:
        config = after[0].config() if after else layout.trained_with(run_dir)
    if before is not None:
        begin = before.state().position
    else:
        begin = _beginning(config, run_dir, step)
        if after and after[0].state().position.before is None:  # of an earlier version
            begin = replace(begin, before=None)
    position = enter_stage(config.stages, begin)
    notes = list(_doubts(config, position, after[0])) if after else []
    return Stand(config, position_at(config, position, step - 1), notes)


def _beginning(config: Config, run_dir: Path, step: int) -> Position:
    """Return where a run began: at the start of its data, or where it branched from another."""
    origin = config.checkpoint.init_from
    if origin is None or not config.checkpoint.init_position:
        return Position()
    checkpoint = find_at(origin, Path(config.data.build.cache_dir).expanduser(), shards=False)
    if checkpoint.step >= step:
        raise InputError.of(
            f"step={step}, and {run_dir} began behind step {checkpoint.step}",
            f"it went on from {checkpoint.place}, whose run trained the steps before",
            f"step={checkpoint.step + 1}"
            if checkpoint.url
            else f"run_dir={checkpoint.path.parents[1]}, or step={checkpoint.step + 1}",
        )
    return checkpoint.state().position


def _doubts(config: Config, position: Position, after: Checkpoint) -> list[str]:
    """Return what to say where a run did not come from a position to its next checkpoint with one
    config."""
    there = after.state().position
    if position_at(config, position, after.step) == there:
        return []
    return [
        f"warning: between step {position.step} and {after.step} the run changed what it takes "
        f"from its data, and no checkpoint says where: this is what it would have taken with the "
        f"config of step {after.step}"
    ]
