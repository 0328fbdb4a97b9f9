"""What reports and the server call weights."""

from __future__ import annotations

from pathlib import Path

from loopcoder.checkpoint.format import NAME, Checkpoint
from loopcoder.storage.remote import is_stored


def run_of(checkpoint: Checkpoint) -> str:
    """Return the name of the run's folder, also of a copy in a store."""
    place = checkpoint.url or str(checkpoint.path.resolve())
    return name_of(place.rstrip("/").rpartition("/")[0])


def name_of(place: str) -> str:
    """Return the name of the run or of the folder that weights are in, by its path or URL."""
    parts = place.rstrip("/").split("/") if is_stored(place) else Path(place).resolve().parts
    return next(p for p in reversed(parts) if p != "checkpoints" and not NAME.fullmatch(p))
