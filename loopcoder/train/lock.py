"""One process per run folder: a second would interleave its metrics with the first's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loopcoder.errors import InputError
from loopcoder.storage.lock import hold


@contextmanager
def only_run_in(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` for this process.

    Raises InputError if another process has it. A file system without locks is not guarded.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = run_dir / ".lock"

    def busy(holder: str) -> None:
        raise InputError.of(
            f"another process is training in {run_dir}" + (f": {holder}" if holder else ""),
            "two runs in one folder would overwrite each other's records and checkpoints",
            f"wait for it or end it (fuser {lock}), or run_dir=ANOTHER_FOLDER",
        )

    with hold(lock, busy, needed=False):
        yield
