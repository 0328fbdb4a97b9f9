"""Which of its own checkpoints a run goes on from: the newest that is whole, or one that is chosen.

Others are set aside under another name and never deleted: `step_N.damaged`, and `step_N.later`
where `checkpoint.step` goes back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.config.schema import CheckpointConfig
from loopcoder.errors import InputError, Problem
from loopcoder.storage.files import fault_of, write_json

WENT_BACK = "went_back.json"
"""Says in the folder of checkpoints that a run has gone back to a step: the same command again goes
on from there. The next command without checkpoint.step removes it."""


def own_checkpoint(
    run_dir: Path, asked: CheckpointConfig, *, sizes: bool = False
) -> Checkpoint | None:
    """Return the checkpoint that a run continues from, if it has one.

    One whose state or config is damaged is passed over; its shards are compared by all ranks
    together (`verify.verified`). With a store it may be on its way from there, or not looked for
    yet.

    Args:
        sizes: One is passed over as well where a shard is missing or cut off, or another file is
            not as it was written: for one process that looks for all others.

    Raises:
        InputError: resume=require finds none, never would overwrite, the chosen step is not there
            or damaged, or none is whole.
    """
    folder = run_dir / "checkpoints"
    own = layout.complete(folder)
    if asked.resume == "never" and own:
        raise InputError.of(
            f"checkpoint.resume=never, but {folder} has checkpoints up to step {own[-1].step}",
            "a new run in this folder would mix with the old one",
            "run_dir=ANOTHER_FOLDER, or checkpoint.resume=auto to continue",
        )
    if asked.store is not None:
        if (coming := _coming(folder, own, asked)) is not None:
            return coming
        back = goes_back(folder, asked)
        if not own or (back and all(c.step != asked.step for c in own)):
            return None
    if asked.resume == "require" and not own:
        raise InputError.of(
            f"checkpoint.resume=require, but {folder} has no complete checkpoint",
            "there is nothing to continue from",
            "checkpoint.resume=auto to start anew, or the right run_dir=",
        )
    if goes_back(folder, asked):
        chosen = _chosen(folder, own, asked.step)
        if facts := _at_once(chosen, asked.verify, sizes):
            raise layout.corrupt(chosen, facts)
        return chosen
    return newest_whole(own, asked.verify, {}, sizes=sizes)


def _coming(folder: Path, own: Sequence[Checkpoint], asked: CheckpointConfig) -> Checkpoint | None:
    """Return the checkpoint on its way from the store, if the run is to go on from that; its small
    files have been compared."""
    back, newest = goes_back(folder, asked), own[-1].step if own else 0
    found = [c for c in layout.parts(folder) if not back or c.step == asked.step]
    if back and any(c.step == asked.step for c in own):
        return None
    return found[-1] if found and (back or found[-1].step > newest) else None


def newest_whole(
    own: Sequence[Checkpoint],
    level: Literal["hash", "size", "none"],
    damaged: Mapping[Path, Sequence[str]],
    *,
    sizes: bool = False,
) -> Checkpoint | None:
    """Return the newest checkpoint that is not damaged; None: there is none at all.

    Args:
        own: Those to choose from, oldest first.
        level: `none` compares nothing.
        damaged: What is known to be wrong, by folder.
        sizes: As in `own_checkpoint`.

    Raises:
        InputError: all are damaged; it lists them.
    """
    found = dict(damaged)
    for checkpoint in reversed(own):
        if checkpoint.path not in found and (facts := _at_once(checkpoint, level, sizes)):
            found[checkpoint.path] = facts
        if checkpoint.path not in found:
            return checkpoint
    if not own:
        return None
    folder = own[-1].path.parent
    why = "no checkpoint of the run is whole; training on one would be silently wrong"
    fix = f"restore a checkpoint in {folder}, or run_dir=ANOTHER_FOLDER to begin anew"
    facts = [fact for c in reversed(own) for fact in found[c.path]]
    raise InputError([Problem(fact, why, fix) for fact in facts])


def _at_once(
    checkpoint: Checkpoint, level: Literal["hash", "size", "none"], sizes: bool = True
) -> list[str]:
    """Compare what takes no time; return what is wrong with state and config and, with `sizes`, the
    other files."""
    if level == "none":
        return []
    try:
        files = layout.files_of(checkpoint)
    except InputError as error:
        return [error.problems[0].fact]
    names = (layout.STATE, layout.CONFIG)
    found = (fault_of(checkpoint.path / n, files[n]) for n in names if n in files)
    facts = [fact for fact in found if fact is not None]
    if sizes:
        facts += layout.faults(checkpoint, "small" if level == "hash" else "size")
    return list(dict.fromkeys(facts))


def _chosen(folder: Path, own: Sequence[Checkpoint], step: int | None) -> Checkpoint:
    found = next((c for c in own if c.step == step), None)
    if found is None:
        raise InputError.of(
            f"checkpoint.step={step}, and the run has no complete checkpoint of that step",
            layout.contents(folder),
            f"checkpoint.step={own[-1].step}" if own else "leave checkpoint.step out to begin anew",
        )
    return found


def goes_back(folder: Path, asked: CheckpointConfig) -> bool:
    """Say whether a run is to go back to a step, which it has not done yet."""
    if asked.step is None:
        return False
    try:
        return bool(json.loads((folder / WENT_BACK).read_text())["step"] != asked.step)
    except (OSError, ValueError, LookupError, TypeError):
        return True


@dataclass(frozen=True)
class SetAside:
    """A checkpoint that a run does not go on from, although it is newer."""

    path: Path
    now: Path | None
    """What it is called now; None: it could not be renamed, and is passed over."""
    kind: Literal["damaged", "later"]
    why: str

    def __str__(self) -> str:
        where = f"it is {self.now.name} now" if self.now else "it could not be renamed"
        if self.kind == "later":
            return f"{self.path.name} is set aside ({where}): {self.why}"
        return f"warning: {self.path.name} is damaged and not used ({where}): {self.why}"


def set_aside(
    chosen: Checkpoint, asked: CheckpointConfig, damaged: Mapping[Path, Sequence[str]]
) -> list[SetAside]:
    """Set aside what is newer than the checkpoint that a run goes on from, and say why.

    Args:
        damaged: What is wrong with shards, by folder.
    """
    folder, aside = chosen.path.parent, []
    back = goes_back(folder, asked)
    for newer in [c for c in layout.complete(folder) if c.step > chosen.step]:
        if facts := damaged.get(newer.path) or _at_once(newer, asked.verify):
            aside.append(_renamed(newer.path, "damaged", "; ".join(facts)))
        elif back:
            aside.append(_renamed(newer.path, "later", f"checkpoint.step={asked.step}"))
    if back and (stuck := [str(one.path) for one in aside if one.now is None]):
        raise InputError.of(
            f"cannot rename {' and '.join(stuck)}",
            "the same command would go on from there, and not from where it went back to",
            "a run_dir that can be written, or move it away yourself",
        )
    try:
        if back:
            write_json(folder / WENT_BACK, {"step": asked.step})
        elif asked.step is None:
            (folder / WENT_BACK).unlink(missing_ok=True)
    except OSError as error:
        if back:
            raise InputError.of(
                f"cannot write {folder / WENT_BACK}: {error.strerror or error}",
                "without it the same command would go back again, and not continue",
                "a run_dir that can be written",
            ) from error
    return aside


def _renamed(path: Path, kind: Literal["damaged", "later"], why: str) -> SetAside:
    name = layout.unused(path, kind)
    try:
        path.rename(name)
    except OSError:
        return SetAside(path, None, kind, why)
    return SetAside(path, name, kind, why)
