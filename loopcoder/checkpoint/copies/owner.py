"""Whose copies a store has: those of one run, from one folder, sent by one start of it.

    DIR/run.json    id and name of the run, and the path of its folder when it last started
    URL/run.json    the same of the folder that has last sent copies there, and which start that was

A store has no locks. Of several that write run.json the last one has it; all look at it again
before the first step and before every copy, and each of the others refuses.
"""

from __future__ import annotations

import json
import os
import uuid
from contextlib import suppress
from pathlib import Path

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.copies.stored import copies, copy_of
from loopcoder.checkpoint.format import MANIFEST, Checkpoint
from loopcoder.config.schema import CheckpointConfig
from loopcoder.errors import InputError
from loopcoder.storage.files import write_json
from loopcoder.storage.writing import WritableStore

NAMES_RUN = "run.json"
_ANOTHER = "the copies of two runs in one place would replace each other"


class NotOurs(InputError):
    """A store has the copies of another run, or of another folder or start of this one."""


def check_owner(store: WritableStore, run_dir: Path, asked: CheckpointConfig) -> None:
    """Compare whose copies a store has with the run of a folder.

    Raises:
        NotOurs: they are another run's, or this folder is a copy of that whose they are.
        LoopcoderError: the store fails.
    """
    theirs, mine = _named(store.found(NAMES_RUN)), _named(_content(run_dir / NAMES_RUN))
    if theirs is None:
        return
    if mine is not None and theirs["id"] == mine["id"]:
        if (original := _original(run_dir, mine) or _original(run_dir, theirs)) is not None:
            raise NotOurs.of(
                f"{run_dir} is a copy of {original}, or that of this one, and {asked.store} has "
                "the checkpoints of one of them",
                _ANOTHER,
                f"checkpoint.store=ANOTHER here; or, if this folder is to go on in its place, move "
                f"{original} away once you know which has trained further (loopcoder runs)",
            )
        return
    if not copies(store):
        return
    own = layout.complete(run_dir / "checkpoints")
    is_lost = mine is None and not own
    if is_lost and (theirs["name"] == _name(run_dir) or asked.resume == "require"):
        return
    if mine is None and any(_is_copied(store, checkpoint) for checkpoint in own):
        return  # its file was lost or damaged
    raise NotOurs.of(
        f"checkpoint.store={asked.store} has the copies of another run, {theirs['name']}, which "
        f"{run_dir} is not ({NAMES_RUN})",
        _ANOTHER,
        "checkpoint.store=ANOTHER"
        + (", or checkpoint.resume=require to go on with that run here" if is_lost else ""),
    )


def claim(store: WritableStore, run_dir: Path) -> None:
    """Name the run in its folder and in its store (rank 0, after `check_owner`).

    Raises:
        LoopcoderError: the store fails.
    """
    mine, theirs = _named(_content(run_dir / NAMES_RUN)), _named(store.found(NAMES_RUN))
    if mine is None and theirs is not None and copies(store):
        mine = theirs
    elif mine is None or _original(run_dir, mine) is not None:
        mine = {"id": uuid.uuid4().hex, "name": _name(run_dir)}
    wanted = {"id": mine["id"], "name": mine["name"], "path": str(_resolved(run_dir))}
    if mine != wanted:
        write_json(run_dir / NAMES_RUN, wanted)
    if theirs is None or any(theirs.get(key) != wanted[key] for key in ("id", "path")):
        store.write(NAMES_RUN, _as_json(wanted))


class Hold:
    """One start's hold on its store, the same object of every rank.

    Rank 0 takes the store when it first answers, and from then on sees whether another has.
    """

    def __init__(self, store: WritableStore, run_dir: Path, asked: CheckpointConfig, start: str):
        """
        Args:
            start: Names this start, the same on all ranks and no other start's.
        """
        self._store, self._run_dir, self._asked, self._start = store, run_dir, asked, start
        self._has_taken = False

    def confirm(self) -> None:
        """Take the store for this start, or see that it still has it (rank 0).

        Raises:
            NotOurs: another run, or another start of this one, has it.
            LoopcoderError: it fails.
        """
        mine = _named(_content(self._run_dir / NAMES_RUN))
        if mine is None:  # the store was away when the run started
            check_owner(self._store, self._run_dir, self._asked)
            claim(self._store, self._run_dir)
            mine = _named(_content(self._run_dir / NAMES_RUN)) or {}
        theirs = _named(self._store.found(NAMES_RUN))
        if theirs is not None and theirs["id"] != mine["id"]:
            raise self._taken(f"another run, {theirs['name']}, has taken it")
        if theirs is None or not self._has_taken:
            if not self._has_taken:
                check_owner(self._store, self._run_dir, self._asked)
            self._store.write(NAMES_RUN, _as_json(mine | {"start": self._start}))
            self._has_taken = True
        elif theirs.get("start") != self._start:
            raise self._taken("another start of this run, or of a copy of its folder, has taken it")

    def is_held(self) -> bool:
        """Say whether rank 0 has taken the store for this start, and no other since.

        Raises:
            LoopcoderError: it fails.
        """
        theirs = _named(self._store.found(NAMES_RUN))
        return theirs is not None and theirs.get("start") == self._start

    def _taken(self, fact: str) -> NotOurs:
        return NotOurs.of(
            f"checkpoint.store={self._asked.store}: {fact} since {self._run_dir} started",
            f"{_ANOTHER}; the checkpoints in {self._run_dir} are complete",
            "checkpoint.store=ANOTHER for one of the two, or end the other and start this one anew",
        )


def _as_json(named: dict[str, str]) -> bytes:
    return json.dumps(named, indent=1).encode() + b"\n"


def _original(run_dir: Path, named: dict[str, str]) -> Path | None:
    """Return the folder of which this one is a copy, as far as this machine sees it; None: it was
    moved, is mounted elsewhere, or is where it was.

    Args:
        named: What a run.json says of the run, with the path where it was.
    """
    if named.get("path", str(_resolved(run_dir))) == str(_resolved(run_dir)):
        return None
    here, there = run_dir / NAMES_RUN, Path(named["path"]) / NAMES_RUN
    with suppress(OSError):
        theirs = _named(_content(there))
        if theirs is not None and theirs["id"] == named["id"] and not _is_same(here, there):
            return there.parent
    return None


def _is_same(one: Path, other: Path) -> bool:
    """Say whether two paths are one file in one folder; a disk that is mounted twice may have two
    device numbers, so these are not compared."""

    def numbers(path: Path) -> tuple[int, int, int]:
        file: os.stat_result = path.stat()
        return path.parent.stat().st_ino, file.st_ino, file.st_mtime_ns

    return numbers(one) == numbers(other)


def _is_copied(store: WritableStore, checkpoint: Checkpoint) -> bool:
    """Say whether the store has a copy of this very checkpoint."""
    return copy_of(store, checkpoint.step).manifest() == (checkpoint.path / MANIFEST).read_bytes()


def _named(content: bytes | None) -> dict[str, str] | None:
    """Return the content of a run.json; None: there is none, or it is damaged."""
    try:
        found = json.loads(content or b"")
        named = {"id": str(found["id"]), "name": str(found["name"])}
        return named | {key: str(found[key]) for key in ("path", "start") if key in found}
    except (ValueError, LookupError, TypeError):
        return None


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _resolved(run_dir: Path) -> Path:
    return run_dir.expanduser().resolve()


def _name(run_dir: Path) -> str:
    return _resolved(run_dir).name
