"""Copies of checkpoints in an object store: what is where, and which of them count.

    URL/run.json                        names the run, as the file of its folder does
    URL/metrics.jsonl, ...              the other files of its folder, as of its newest copy
    URL/checkpoints/step_NNNNNNNN/      as in its folder; manifest.json comes last

A copy counts when it has its manifest. One that is set aside keeps it under another name:
manifest.json.undone, .later or .damaged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import xxhash

from loopcoder.checkpoint.format import MANIFEST, NAME, STATE, entries
from loopcoder.checkpoint.state import CheckpointState
from loopcoder.errors import InputError
from loopcoder.storage.files import FileEntry
from loopcoder.storage.remote import Words
from loopcoder.storage.writing import WritableStore

CHECKPOINTS = "checkpoints"
_ASIDE = re.compile(re.escape(MANIFEST) + r"\.(\w+)")
_WORDS = Words(
    "checkpoint",
    (
        "a copy of a checkpoint has it; it was removed, or the URL is another one",
        "the URL of a run's copies, as `loopcoder checkpoint list URL` knows it",
    ),
    "a local checkpoint",
    "another checkpoint",
    may="list, read, write and remove what is there",
)


def open_store(url: str, report: Callable[[str], None] | None = None) -> WritableStore:
    """Return the objects below the URL of a run, of its checkpoints or of one of them.

    Raises:
        InputError: fsspec does not know the protocol, or a package for it is missing.
    """
    return WritableStore(url, report, _WORDS)


@dataclass(frozen=True)
class StoredCheckpoint:
    """A folder of a checkpoint in a store."""

    store: WritableStore
    """Its objects."""
    step: int

    @property
    def url(self) -> str:
        return self.store.url

    def manifest(self) -> bytes | None:
        """Return the content of its manifest; None: it is no complete copy."""
        return self.store.found(MANIFEST)

    def small(self, name: str, files: dict[str, FileEntry]) -> bytes:
        """Return a small file, compared with what the manifest says of it.

        Raises:
            InputError: it is missing or damaged.
        """
        wanted = files.get(name)
        content = b"" if wanted is None else self.store.read(name)
        if wanted is None or xxhash.xxh3_128_hexdigest(content) != wanted["xxh3_128"]:
            fact = "is not in the manifest" if wanted is None else "has other content than written"
            raise damaged(f"{self.url}/{name} {fact}")
        return content

    def state(self, content: bytes) -> CheckpointState:
        """Return where it stands, by the content of its state.json.

        Raises:
            InputError: it cannot be understood.
        """
        try:
            return CheckpointState.from_json(json.loads(content))
        except (ValueError, AttributeError) as error:
            raise damaged(f"{self.url}/{STATE} cannot be understood: {error}") from error

    def set_aside(self, why: str) -> None:
        """Let it count no more; nothing of it goes.

        Args:
            why: One word, as in the name of a folder that is set aside.
        """
        content = self.manifest()
        if content is not None:
            self.store.write(f"{MANIFEST}.{why}", content)
            self.store.remove([MANIFEST])

    def remove(self) -> None:
        """Remove all of it, the manifest first: what is half removed does not count."""
        self.store.remove([MANIFEST])
        self.store.remove_all()


def damaged(fact: str) -> InputError:
    """Return the error that a copy cannot be used."""
    return InputError.of(
        fact,
        "the copy is damaged; training on it would be silently wrong",
        "name another one, which `loopcoder checkpoint verify URL` says is whole",
    )


def manifest_of(stored: StoredCheckpoint, content: bytes) -> dict[str, FileEntry]:
    """Return what the manifest of a copy says of each file.

    Raises:
        InputError: it is damaged, or names a file outside of the folder.
    """
    try:
        return entries(content)
    except ValueError as error:
        raise damaged(f"{stored.url}/{MANIFEST} cannot be understood: {error}") from error


def why_aside(sizes: dict[str, Any]) -> str | None:
    """Return why a copy is set aside, by the names of its objects; None: it is not."""
    found = (_ASIDE.fullmatch(name) for name in sizes)
    return next((match[1] for match in found if match), None)


def copies(run: WritableStore) -> list[StoredCheckpoint]:
    """Return the folders of checkpoints in the store of a run, complete or not, oldest first."""
    folder = run.below(CHECKPOINTS)
    return copies_in(folder)


def copies_in(folder: WritableStore) -> list[StoredCheckpoint]:
    """Return the folders of checkpoints directly below a URL, complete or not, oldest first."""
    matches = (NAME.fullmatch(name) for name in folder.names())
    return [StoredCheckpoint(folder.below(m[0]), int(m[1])) for m in matches if m]


def copy_of(run: WritableStore, step: int) -> StoredCheckpoint:
    """Return the place of a step's checkpoint in the store of a run."""
    return StoredCheckpoint(run.below(f"{CHECKPOINTS}/step_{step:08d}"), step)
