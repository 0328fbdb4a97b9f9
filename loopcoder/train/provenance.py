"""Where a run comes from: what its record says of command, code and machine."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from loopcoder import __version__
from loopcoder.backends import Backends
from loopcoder.config.identity import leaves
from loopcoder.config.schema import Config
from loopcoder.origin import commit_of

_OF_A_NODE = (
    "run_dir",
    "checkpoint.init_from",
    "data.path",
    "data.build.",
    "data.reader",
    "data.skip",
    "eval.corpora",
    "hardware.",
    "logging.",
    "parallel.nproc_per_node",
)
"""Fields in which the nodes of a run may differ; corpora are compared by their fingerprints."""


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
        "commit": commit_of(),
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


def same_on_all(config: Config, backends: Backends) -> dict[str, str]:
    """Return what all nodes of a run must have in common, by its name: code and config."""
    found = {
        name: str(_without_paths(value))
        for name, value in leaves(dataclasses.asdict(config))
        if not name.startswith(_OF_A_NODE)
    }
    versions = {f"{name} version": version for name, version in backends.versions.items()}
    own = {
        "loopcoder version": __version__,
        "python version": platform.python_version(),
        "names in eval.corpora": ", ".join(config.eval.corpora),
    }
    if (commit := commit_of()) is not None:
        own["loopcoder commit"] = commit
    return own | versions | found


def _without_paths(value: Any) -> Any:
    """Return a value without the paths of corpora in it."""
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    if isinstance(value, dict):
        return {name: _without_paths(one) for name, one in value.items() if name != "path"}
    return value
