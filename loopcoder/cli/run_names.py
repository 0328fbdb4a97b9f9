"""What reports call a checkpoint."""

from __future__ import annotations

from loopcoder.checkpoint.format import Checkpoint


def run_of(checkpoint: Checkpoint) -> str:
    """Return the name of the run's folder, also of a copy in a store."""
    if checkpoint.url is not None:
        folders = checkpoint.url.rstrip("/").split("/")
    else:
        folders = list(checkpoint.path.resolve().parts)
    folders = [f for f in folders[:-1] if f != "checkpoints"]
    return folders[-1] if folders else checkpoint.path.name
