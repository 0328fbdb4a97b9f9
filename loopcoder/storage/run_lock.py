"""One process per run folder: a second would interleave its metrics with the first's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from loopcoder.errors import DiskFull, InputError
from loopcoder.storage.disk import is_disk_full, remedy
from loopcoder.storage.folders import make_folder
from loopcoder.storage.lock import hold, is_held


@contextmanager
def only_run_in(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` for this process.

    A file system without locks is not guarded. A run that is refused before it has written
    anything leaves no lock.

    Raises:
        InputError: another process has it, or nothing can be written there.
        DiskFull: there is no room.
    """
    make_folder(run_dir, "run_dir")
    lock = run_dir / ".lock"
    with ExitStack() as held:
        try:
            held.enter_context(hold(lock, partial(_busy, run_dir), needed=False))
        except OSError as error:
            if is_disk_full(error):
                raise DiskFull.of(
                    f"cannot write {lock}: {error.strerror}",
                    "a run writes checkpoints there, and this file has not even room for a number",
                    f"{remedy(error)}, or run_dir=ANOTHER_FOLDER",
                ) from error
            raise InputError.of(
                f"cannot lock {lock}: {error.strerror or error}",
                "it is another user's or no file; with it a run keeps its folder to itself",
                f"rm -r {lock} if no run of yours or others is there, or run_dir=ANOTHER_FOLDER",
            ) from error
        try:
            yield
        except InputError:
            if [path.name for path in run_dir.iterdir()] == [lock.name]:
                lock.unlink()
            raise


def is_trained(run_dir: Path) -> bool:
    """Say whether a process trains in `run_dir` at this moment; nothing is made."""
    return is_held(run_dir / ".lock")


def refuse_second(run_dir: Path) -> None:
    """Raise InputError if another process trains in `run_dir` at this moment; nothing is made."""
    if is_trained(run_dir):
        _busy(run_dir, "")


def _busy(run_dir: Path, holder: str) -> None:
    lock = run_dir / ".lock"
    raise InputError.of(
        f"another process is training in {run_dir}" + (f": {holder}" if holder else ""),
        "two runs in one folder would overwrite each other's records and checkpoints",
        f"wait for it or end it (fuser {lock}), or run_dir=ANOTHER_FOLDER",
    )
