"""Folders that are complete or absent: filled under another name, then renamed.

A folder under its final name holds `done.json`: what it was made of (a fingerprint) and the size
and hash of each of its files. One that was killed half-way ends in .tmp and is made anew.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.tasks.markers import read_marker, synced_files, write_marker
from loopcoder.errors import InputError
from loopcoder.storage.digest import file_digest
from loopcoder.storage.files import fault_of, sync_folder

_MARKER = "done.json"


@dataclass(frozen=True)
class DoneFolder:
    """A folder that a phase has completed."""

    path: Path
    marker: dict[str, Any]
    digest: str
    """Hash of the marker, hence of everything in the folder."""

    def check(self, name: str, *, contents: bool = True) -> None:
        """Raise InputError unless a file is as it was written."""
        fact = fault_of(self.path / name, self.marker["files"][name], contents=contents)
        if fact is not None:
            raise InputError.of(
                fact, "it was changed after it was complete", f"remove {self.path} and run it again"
            )


def done_folder(path: Path, fingerprint: str | None, task: str) -> DoneFolder:
    """Return a completed folder, whatever or exactly what it was made of."""
    marker = read_marker(path / _MARKER, fingerprint)
    if marker is None:
        raise InputError.of(
            f"{path} is not complete",
            "a phase needs all of the phase before it",
            f"{f'remove {path}, then ' if path.exists() else ''}{task} first",
        )
    return DoneFolder(path, marker, file_digest(path / _MARKER))


def finished(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the marker if this was done before, None if it is to be done."""
    return done_folder(path, fingerprint, "run it").marker if path.exists() else None


@contextlib.contextmanager
def atomically(target: Path) -> Iterator[Path]:
    """Give a folder to fill, which takes the name `target` at the end."""
    temporary = target.with_name(target.name + ".tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(target.parent)


def seal(folder: Path, fingerprint: str, **facts: Any) -> None:
    """Sync every file of the folder to disk and write the marker."""
    files = synced_files(folder)
    write_marker(folder / _MARKER, fingerprint, **facts, files=files)
