"""What `loopcoder checkpoint` says of each checkpoint, and how it looks at copies in a store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.copies.places import stored_at
from loopcoder.checkpoint.copies.stored import StoredCheckpoint, manifest_of, why_aside
from loopcoder.checkpoint.state import CheckpointState
from loopcoder.config.compose import load_config
from loopcoder.config.schema import Config
from loopcoder.errors import InputError, counted
from loopcoder.storage.files import FileEntry


@dataclass(frozen=True)
class Shown:
    """What is said of a folder of a checkpoint."""

    path: str
    step: int
    state: str
    time: str
    bytes: int
    layout: str
    """Ranks that wrote it, and how they shared the model; "" where it does not say."""
    kept: str
    """Why it stays; "": it goes when the next ones are saved, or it is not the run's to delete."""
    stuck: str
    """Why it cannot be deleted, although it is to go; "" otherwise."""
    files: int
    """Files that its manifest has, and that were compared with it."""
    hashed_bytes: int
    """Of them, those of files whose contents were compared; 0: sizes alone."""
    faults: list[str]


def layout_in_words(state: CheckpointState, config: Config) -> str:
    """Say how many ranks wrote a checkpoint, and how they shared the model."""
    split = [f"{n}{s}" for n in ("tp", "pp") if (s := getattr(config.parallel, n)) > 1]
    return " ".join([counted(state.world_size, "rank"), *split])


def shown_copies(url: str, reads_all: bool) -> Iterator[Shown]:
    """Yield what there is to say of each copy at a URL, oldest first.

    Raises:
        InputError: there is none.
        LoopcoderError: the store does not answer.
    """
    for stored in stored_at(url):
        sizes, files = stored.store.sizes(), dict[str, FileEntry]()
        manifest, facts, shared = stored.manifest(), list[str](), ""
        state = "incomplete" if why_aside(sizes) is None else "set aside"
        if manifest is not None:
            try:
                files = manifest_of(stored, manifest)
                facts = list(_faults(stored, files, sizes, reads_all))
                shared = _layout_of(stored, files) if not facts else ""
            except InputError as error:
                facts = [problem.fact for problem in error.problems]
            state = "damaged" if facts else "complete"
        hashed_bytes = sum(entry["bytes"] for entry in files.values()) if reads_all else 0
        yield Shown(
            path=stored.url,
            step=stored.step,
            state=state,
            time=_time_of(stored, sizes),
            bytes=sum(sizes.values()),
            layout=shared,
            kept="",
            stuck="",
            files=len(files),
            hashed_bytes=hashed_bytes,
            faults=facts,
        )


def _time_of(stored: StoredCheckpoint, sizes: dict[str, Any]) -> str:
    """Say when a copy was completed; of one that is not, when one of its objects was written."""
    name = max(sizes, key=lambda n: (n.startswith(layout.MANIFEST), n), default=layout.MANIFEST)
    written = stored.store.written(name)
    return "" if written is None else f"{written:%Y-%m-%d %H:%M}"


def _layout_of(stored: StoredCheckpoint, files: dict[str, FileEntry]) -> str:
    state = stored.state(stored.small(layout.STATE, files))
    return layout_in_words(state, _config(stored, files))


def _config(stored: StoredCheckpoint, files: dict[str, FileEntry]) -> Config:
    with TemporaryDirectory() as folder:
        path = Path(folder) / layout.CONFIG
        path.write_bytes(stored.small(layout.CONFIG, files))
        return load_config(path)


def _faults(
    stored: StoredCheckpoint,
    files: dict[str, FileEntry],
    sizes: dict[str, Any],
    reads_all: bool,
) -> Iterator[str]:
    for name, entry in sorted(files.items()):
        where, wanted = f"{stored.url}/{name}", entry["bytes"]
        if name not in sizes:
            yield f"{where} is missing"
        elif sizes[name] != wanted:
            yield f"{where} has {sizes[name]:,} bytes, {wanted:,} were written"
        elif reads_all and stored.store.digest(name, wanted) != entry["xxh3_128"]:
            yield f"{where} ({wanted:,} bytes) has other content than was written"
