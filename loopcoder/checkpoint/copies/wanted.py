"""Which checkpoint of its store a run goes on from, where its own folder has none or an older one.

What the run has left for good does not come back: what it went back from, also where only the
history of a copy says so, and what its folder has under another name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.choice import goes_back
from loopcoder.checkpoint.copies.stored import StoredCheckpoint, copies, manifest_of
from loopcoder.checkpoint.rewind import UNDONE, Rewind, rewinds_of
from loopcoder.checkpoint.state import CheckpointState
from loopcoder.config.schema import CheckpointConfig
from loopcoder.errors import InputError
from loopcoder.storage.files import FileEntry
from loopcoder.storage.writing import WritableStore

DAMAGED = "damaged"


@dataclass(frozen=True)
class Wanted:
    """A copy that a run goes on from."""

    step: int
    url: str
    manifest: bytes
    files: dict[str, FileEntry]
    small: dict[str, bytes]
    """What a start reads before the shards are there."""


@dataclass
class Choice:
    """What a look into the store came to."""

    wanted: Wanted | None = None
    aside: list[tuple[StoredCheckpoint, str, str]] = field(default_factory=list)
    """Copies that do not count any more: with the word for it, and why."""
    notes: list[str] = field(default_factory=list)


def choose(store: WritableStore, run_dir: Path, asked: CheckpointConfig) -> Choice:
    """Return what a run has to fetch before it goes on, by the view of this process.

    Raises:
        InputError: `checkpoint.resume=require` or `checkpoint.step` cannot be honoured.
        LoopcoderError: the store fails.
    """
    folder = run_dir / "checkpoints"
    own, choice = layout.complete(folder), Choice()
    back = goes_back(folder, asked)
    if back and any(c.step == asked.step for c in own):
        return choice
    newest = own[-1].step if own else 0
    rewinds = rewinds_of(run_dir)
    for stored in reversed(copies(store)):
        if stored.step != asked.step if back else stored.step <= newest:
            continue
        manifest = stored.manifest()
        if manifest is None:
            continue
        try:
            files = manifest_of(stored, manifest)
            small = {name: stored.small(name, files) for name in (layout.STATE, layout.CONFIG)}
            state = stored.state(small[layout.STATE])
        except InputError as error:
            choice.aside.append((stored, DAMAGED, error.problems[0].fact))
            continue
        if (why := _undone(state, rewinds)) is not None:
            choice.aside.append((stored, UNDONE, why))
        elif (name := _aside_here(folder, stored.step, manifest)) is not None:
            choice.notes.append(
                f"{stored.url} is not fetched, since {name} is a checkpoint that was set aside; "
                "without that folder it would be"
            )
        else:
            choice.wanted = Wanted(stored.step, stored.url, manifest, files, small)
            break
    if choice.wanted is None and (back or (asked.resume == "require" and not own)):
        raise _missing(store, run_dir, asked, choice)
    return choice


def refuse_if_new(store: WritableStore, asked: CheckpointConfig) -> None:
    """Raise InputError if a run that must not continue finds copies in its store; nothing of them
    is to come into its folder.

    Raises:
        LoopcoderError: besides, the store fails.
    """
    if asked.resume != "never":
        return
    for stored in reversed(copies(store)):
        if stored.manifest() is not None:
            raise InputError.of(
                f"checkpoint.resume=never, but {stored.url} is a copy of this run's",
                "a new run would mix its copies with those",
                "checkpoint.store=ANOTHER, or checkpoint.resume=auto to continue",
            )


def _undone(state: CheckpointState, rewinds: list[Rewind]) -> str | None:
    """Say for which rewind of the run a checkpoint is from the steps that were undone."""
    applied = {done.step: done.steps for done in state.position.skipped}
    last = {rewind.to_step: rewind for rewind in rewinds}
    for rewind in last.values():
        if rewind.to_step < state.step and applied.get(rewind.to_step + 1) != rewind.skip_steps:
            return f"the run went back from step {rewind.from_step} to {rewind.to_step}"
    return None


def _aside_here(folder: Path, step: int, manifest: bytes) -> str | None:
    """Return the name under which the folder of a run has set the same checkpoint aside."""
    for path in folder.glob(f"step_{step:08d}.*"):
        if path.suffix == layout.PART:
            continue
        try:
            if (path / layout.MANIFEST).read_bytes() == manifest:
                return path.name
        except OSError:
            continue
    return None


def _missing(
    store: WritableStore, run_dir: Path, asked: CheckpointConfig, choice: Choice
) -> InputError:
    own = [c.step for c in layout.complete(run_dir / "checkpoints")]
    there = [c.step for c in copies(store) if c.manifest() is not None]
    steps = sorted({*own, *there} - {c.step for c, _, _ in choice.aside})
    listed = ", ".join(map(str, steps)) or "none"
    facts = "".join(f"; {fact}" for _, _, fact in choice.aside)
    if asked.step is not None:
        return InputError.of(
            f"checkpoint.step={asked.step}, and neither {run_dir} nor {asked.store} has such a "
            f"checkpoint{facts}",
            f"the steps of the complete ones: {listed}",
            f"checkpoint.step={steps[-1] if steps else 'null'}",
        )
    return InputError.of(
        f"checkpoint.resume=require, but neither {run_dir} nor {asked.store} has a complete "
        f"checkpoint{facts}",
        "there is nothing to continue from",
        "checkpoint.resume=auto to start anew, or the right run_dir= and checkpoint.store=",
    )
