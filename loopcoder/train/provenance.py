"""Where a run comes from: what its record says of command, code and machine."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopcoder.backends import Backends


@dataclass(frozen=True)
class Launch:
    """How a run was started."""

    overrides: tuple[str, ...] = ()
    """What was asked for on the command line, `--config-dir DIR` too."""
    is_point: bool = False
    """It is one run of a sweep."""
    began: float | None = field(default=None, compare=False)
    """When the command was started, on the monotonic clock of the machine; None: not known."""


def provenance(overrides: Sequence[str], backends: Backends, world_size: int) -> dict[str, Any]:
    """Return the fields of the event `run_started`."""
    fields: dict[str, Any] = {
        "command": shlex.join(["loopcoder", "train", *overrides]),
        "commit": _commit(),
        "host": socket.gethostname(),
        "processes": world_size,
        "python": platform.python_version(),
        **{name.replace("-", "_"): version for name, version in backends.versions.items()},
    }
    if backends.has_gpu:
        fields["gpu"] = f"{backends.gpu_count} x {backends.gpu_name}"
    if job := os.environ.get("SLURM_JOB_ID"):
        fields["slurm_job_id"] = job
    return fields


def _commit() -> str | None:
    """Return the commit of a checkout, with "+" where it has changes; None outside of one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
