"""How often each token is, by shard: counted while it is checked, added up for the manifest."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.tasks.work import Work
from loopcoder.storage.files import write_bytes


def counts_file(work: Work, split: str, index: int) -> Path:
    """Return where it stands how often each token is, int64: of `train`, in the shards of a bucket
    [domains, vocab_size]; of `val`, in the held-out documents of a domain [vocab_size]."""
    return work.folder / "frequencies" / f"{split}-{index:05}.npy"


def save_counts(path: Path, counts: NDArray[np.int64]) -> None:
    """Write a whole file of counts."""
    # through a buffer: on a full disk np.save raises an OSError without errno
    buffer = io.BytesIO()
    np.save(buffer, counts)
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, buffer.getvalue())
