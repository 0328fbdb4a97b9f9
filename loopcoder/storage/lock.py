"""One run a folder: a second process that trains into the same folder would mix two curves."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loopcoder.errors import InputError


@contextmanager
def only_run_in(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` for this process; the kernel lets go of it however the process ends.

    Raises InputError if another process has it. A file system without locks is not guarded.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise InputError.of(
                    f"another process is training in {run_dir}",
                    "two runs in one folder would overwrite each other's records and checkpoints",
                    f"wait for it or end it (fuser {run_dir}/.lock), or run_dir=ANOTHER_FOLDER",
                ) from error
        yield
    finally:
        os.close(descriptor)
