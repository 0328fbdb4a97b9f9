"""Done markers: JSON with the fingerprint of all that determined a task's result, written last."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from loopcoder.errors import InputError
from loopcoder.storage.disk import full_disk_raises
from loopcoder.storage.files import FileEntry, synced_entry, write_json


def write_marker(path: Path, made_of: str, **facts: Any) -> dict[str, Any]:
    """Say that a task is done: its files are on disk already. Return what was written."""
    marker = {"fingerprint": made_of, **facts}
    write_json(path, marker)
    return marker


def read_marker(path: Path, made_of: str | None) -> dict[str, Any] | None:
    """Return the content of a done marker, None if there is none.

    Args:
        path: Where it would be.
        made_of: The fingerprint that it must have; None: any.

    Raises:
        InputError: it was altered, or speaks of another input or config.
    """
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))
        found = marker["fingerprint"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError.of(
            f"cannot read {path}: {e!r}",
            "markers are written whole; this one was altered",
            f"delete {path} and run its task again",
        ) from e
    if made_of not in (None, found):
        raise InputError.of(
            f"{path} has the fingerprint {found}, this config {made_of}",
            "what is there was made from other documents or another config; the two must not mix",
            f"another folder, or delete {path.parent}",
        )
    return dict(marker)


def disk_errors(folder: Path) -> AbstractContextManager[None]:
    """Turn a full disk into an error for the user; what was begun is redone by the next run."""
    return full_disk_raises(
        folder,
        lambda fact: InputError.of(
            fact,
            "the stages of a corpus need up to twice the size of its documents beside it",
            "free some space and start the same command again: it continues where it was",
        ),
    )


def synced_files(folder: Path) -> dict[str, FileEntry]:
    """Sync every file of a folder to disk; return the size and hash of each by its name."""
    return {path.name: synced_entry(path) for path in sorted(folder.iterdir())}
