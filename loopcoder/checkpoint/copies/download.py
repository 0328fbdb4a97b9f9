"""A file of a checkpoint comes from a store to the disk, and is what was written."""

from __future__ import annotations

import os
from pathlib import Path

from loopcoder.errors import DiskFull, InputError
from loopcoder.storage.disk import full_disk_raises
from loopcoder.storage.files import FileEntry, fault_of
from loopcoder.storage.remote import Store


def fetch_file(store: Store, name: str, path: Path, wanted: FileEntry) -> str | None:
    """Fetch a file unless it is there; one that is damaged on its way is fetched once more.

    Returns what is wrong with it in the store; None: nothing.

    Raises:
        DiskFull: there is no room for it.
        LoopcoderError: the store does not answer.
    """
    if path.is_file() and fault_of(path, wanted) is None:
        return None
    with full_disk_raises(path.parent, _no_room):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            for _ in range(2):
                if store.download(name, path, wanted["bytes"]) == wanted["xxh3_128"]:
                    _sync(path)
                    return None
        except InputError as error:  # it is missing, or shorter
            return error.problems[0].fact
    return f"{store.url}/{name} ({wanted['bytes']:,} bytes) has other content than was written"


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _no_room(fact: str) -> DiskFull:
    why = "a checkpoint is fetched from a store to there"
    return DiskFull.of(fact, why, "free space there, then start the same command again")
