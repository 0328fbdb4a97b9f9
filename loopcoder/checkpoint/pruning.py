"""Which checkpoints a run keeps. Deleting is never worth a run: what cannot go stays."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from loopcoder.checkpoint.format import MANIFEST, Checkpoint, complete
from loopcoder.config.schema import CheckpointConfig

_GOING = ".deleting"
"""Suffix of a checkpoint that is being deleted: what has it is no checkpoint any more."""


@dataclass
class Pruned:
    """What became of the checkpoints that a run does not keep."""

    deleted: list[Checkpoint] = field(default_factory=list)
    notes: dict[Path, str] = field(default_factory=dict)
    """What stays although it should go, and why."""


def kept(found: list[Checkpoint], config: CheckpointConfig, spared: int | None) -> dict[int, str]:
    """Return the steps that stay, and why.

    Args:
        found: Complete checkpoints, oldest first.
        config: How many stay, and which do for ever.
        spared: Step where the run begins to decay, which stays besides.
    """
    why = {c.step: "checkpoint.keep=null" for c in found if config.keep is None}
    others = [c for c in found if c.step != spared]
    if config.keep is not None:
        why |= {c.step: f"newest {config.keep}" for c in others[-config.keep :]}
    every = config.keep_every
    why |= {c.step: f"every {every}" for c in found if every and c.step % every == 0}
    return why | {c.step: "before the decay" for c in found if c.step == spared}


def prune(
    folder: Path,
    config: CheckpointConfig,
    spared: int | None = None,
    newest: int | None = None,
    in_use: Collection[int] = (),
) -> Pruned:
    """Delete the checkpoints in a folder that are not kept.

    Args:
        newest: Step of the one that was just saved; None: the newest. Later ones, which a run that
            went back could not set aside, neither count nor go.
        in_use: Steps that are being copied to a store, and go when the next one is saved.

    Links, mounted folders and folders that are not to be written stay, as does what the system
    does not let go. Renaming comes first: it fails where deleting would, before anything is lost,
    and what is half deleted is never taken for a checkpoint.
    """
    pruned = Pruned()
    try:
        found = [c for c in complete(folder) if newest is None or c.step <= newest]
        stays = kept(found, config, spared)
        pruned.notes |= finish_deleting(folder)
    except OSError as error:
        pruned.notes[folder] = str(error)
        return pruned
    for checkpoint in found:
        if checkpoint.step in stays or checkpoint.step in in_use:
            continue
        if (why := _delete(checkpoint.path)) is not None:
            pruned.notes[checkpoint.path] = why
        else:
            pruned.deleted.append(checkpoint)
    return pruned


class Pruning:
    """Prunes after every save of a run: beside its steps where it saves beside them, for a large
    file takes seconds to delete."""

    def __init__(self, config: CheckpointConfig, report: Callable[..., None]):
        """
        Args:
            report: records events; `poll` and `finish` call it.
        """
        self._config, self._report = config, report
        self._worker = ThreadPoolExecutor(1, "prunes") if config.async_save else None
        self._under_way: Future[Pruned] | None = None
        self._said: set[Path] = set()
        """What stays although it should go; it is tried again after every save, and said once."""

    def begin(self, folder: Path, spared: int | None, newest: int, in_use: Collection[int]) -> None:
        """Prune; the arguments are those of `prune`."""
        self.finish()
        work = partial(prune, folder, self._config, spared, newest, in_use)
        if self._worker is None:
            self._record(work())
        else:
            self._under_way = self._worker.submit(work)

    def poll(self) -> None:
        """Record what has been deleted, if that is done."""
        if self._under_way is not None and self._under_way.done():
            self.finish()

    def finish(self) -> None:
        """Wait until it is done."""
        if self._under_way is not None:
            done, self._under_way = self._under_way, None
            self._record(done.result())

    def _record(self, pruned: Pruned) -> None:
        for old in pruned.deleted:
            self._report("checkpoint_deleted", step=old.step, path=str(old.path))
        for path, why in pruned.notes.items():
            if path not in self._said:
                self._report("checkpoint_not_deleted", path=str(path), why=why)
                self._said.add(path)


def prune_reporting(
    folder: Path,
    config: CheckpointConfig,
    spared: int | None,
    newest: int,
    report: Callable[..., None],
) -> None:
    """Delete as `prune` does, and record what went and what stays as events."""
    pruning = Pruning(config, report)
    pruning.begin(folder, spared, newest, ())
    pruning.finish()


def finish_deleting(folder: Path) -> dict[Path, str]:
    """Delete what a run that was killed had begun to delete; return what stays, and why."""
    try:
        left = {path: why_not(path) or _remove(path) for path in folder.glob(f"step_*{_GOING}")}
    except OSError as error:
        return {folder: str(error)}
    return {path: why for path, why in left.items() if why is not None}


def _delete(path: Path) -> str | None:
    """Delete a checkpoint; return why it stays, None: it is gone."""
    if (why := why_not(path)) is not None:
        return why
    going = path.with_name(path.name + _GOING)
    try:
        path.rename(going)
    except FileNotFoundError:
        return None  # somebody else was first
    except OSError as error:
        return _said(error)
    why = _remove(going)
    if why is not None and (going / MANIFEST).exists():
        try:
            going.rename(path)
        except OSError:
            return f"{why}; it is called {going.name} now"
    return why


def why_not(path: Path) -> str | None:
    """Say why a folder is not to be deleted; None: nothing is known that speaks for it."""
    try:
        if path.is_symlink():
            return "it is a link, and what it leads to is not this run's to delete"
        if path.is_mount():
            return "a disk is mounted there"
        if not path.stat().st_mode & stat.S_IWUSR:
            return "it is write-protected (chmod u+w lets it go)"
        if inner := next(_folders(path), None):
            return f"it holds the folder {inner}, which no checkpoint has"
    except FileNotFoundError:
        return None
    except OSError as error:
        return _said(error)
    return None


def _folders(path: Path) -> Iterator[str]:
    with os.scandir(path) as entries:
        yield from (e.name for e in entries if e.is_dir(follow_symlinks=False))


def _remove(path: Path) -> str | None:
    """Remove a folder of files, the manifest first; links go, what they lead to stays."""
    try:
        (path / MANIFEST).unlink(missing_ok=True)
        for file in list(path.iterdir()):
            file.unlink(missing_ok=True)
        path.rmdir()
    except FileNotFoundError:
        return None
    except OSError as error:
        return _said(error)
    return None


def _said(error: OSError) -> str:
    return error.strerror or str(error)
