"""Going back: which checkpoint a run continues from after bad steps, and what it leaves out then.

`rewinds.json` in the folder of a run says it; the same command reads it and continues as a run does
that was started with the same `data.skip`. Checkpoints after the one that it goes back to are
renamed first, and the file is written last: whatever is killed in between begins as a run that went
on from there, and comes to the same bad steps again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.choice import newest_whole
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.config.data import SkipConfig
from loopcoder.config.schema import Config
from loopcoder.data.sampler import Position, sequences_of
from loopcoder.errors import InputError
from loopcoder.storage.files import parsing, write_json

REWINDS = "rewinds.json"
UNDONE = "undone"
"""Why a checkpoint is set aside that a run went back from."""


@dataclass(frozen=True)
class Rewind:
    """Steps that were undone, and the samples that are left out instead."""

    to_step: int
    """Of the checkpoint that the run went back to."""
    from_step: int
    """The last step that was undone."""
    skip_steps: int
    """`data.skip` of the step after `to_step`, with what was left out there before."""
    stage: int
    sample: int
    """The first sample that is left out, in the data stage."""
    samples: int
    why: str
    time: str
    """UTC (ISO 8601)."""


def rewinds_of(run_dir: Path) -> list[Rewind]:
    """Return how often a run went back, oldest first.

    Raises:
        InputError: the file is damaged.
    """
    path = run_dir / REWINDS
    why = "it says which samples the run leaves out since it went back to a checkpoint"
    fix = (
        f"write into it a list of the events `run_rewound` of {run_dir}/events.jsonl, each without "
        f"its kind; where there is none, rm {path}"
    )
    with suppress(FileNotFoundError, NotADirectoryError), parsing(path, why, fix):
        return TypeAdapter(list[Rewind]).validate_python(json.loads(path.read_text("utf-8")))
    return []


def with_rewinds(config: Config, run_dir: Path) -> Config:
    """Return a config that leaves out what the run went back for; a second time changes nothing."""
    rewinds = rewinds_of(run_dir)
    if not rewinds or not layout.complete(run_dir / "checkpoints"):
        return config  # it begins anew
    skips = {skip.step: skip for skip in config.data.skip}
    for rewind in rewinds:
        step = rewind.to_step + 1
        skips[step] = SkipConfig(step=step, steps=rewind.skip_steps)
    skip = [skips[step] for step in sorted(skips)]
    return replace(config, data=replace(config.data, skip=skip))


def forget_rewinds(run_dir: Path) -> None:
    """Begin anew in a folder: events.jsonl still says what an earlier run there left out."""
    (run_dir / REWINDS).unlink(missing_ok=True)


def last_before(
    run_dir: Path, step: int, level: Literal["hash", "size", "none"] = "none"
) -> Checkpoint | None:
    """Return the newest complete checkpoint from before a step whose state and config are not
    damaged; None: there is none.

    Args:
        level: `none` compares nothing.
    """
    older = [c for c in layout.complete(run_dir / "checkpoints") if c.step < step]
    with suppress(InputError):
        return newest_whole(older, level, {})
    return None


def go_back(
    config: Config, run_dir: Path, checkpoint: Checkpoint, position: Position, why: str
) -> Rewind:
    """Make the same command continue from a checkpoint, without the samples up to a position.

    Args:
        config: With the earlier rewinds.
        position: After the last step that was trained.
    """
    start = checkpoint.state().position
    skip_steps = _steps_to_skip(config, start, position)
    rewind = Rewind(
        to_step=start.step,
        from_step=position.step,
        skip_steps=skip_steps,
        stage=start.stage,
        sample=start.sample,
        samples=sequences_of(config.train, start.samples, skip_steps),
        why=why,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    newer = [c for c in layout.complete(checkpoint.path.parent) if c.step > checkpoint.step]
    _set_aside(newer)
    known = [asdict(known) for known in rewinds_of(run_dir)]
    write_json(run_dir / REWINDS, [*known, asdict(rewind)])
    return rewind


def _steps_to_skip(config: Config, start: Position, end: Position) -> int:
    """Return how many steps would take the samples between two positions; in a ramp of the batch
    the first that take as many."""
    before = {skip.step: skip.steps for skip in config.data.skip}.get(start.step + 1, 0)
    steps = end.step - start.step
    if start.stage != end.stage:  # the rest of the stage is over when its tokens are trained
        return before + steps
    samples = end.sample - start.sample
    while sequences_of(config.train, start.samples, steps) < samples:
        steps += 1
    return steps


def _set_aside(checkpoints: Sequence[Checkpoint]) -> None:
    """Rename checkpoints, the newest first, so that none of them is continued from."""
    for checkpoint in reversed(checkpoints):
        checkpoint.path.rename(layout.unused(checkpoint.path, UNDONE))
