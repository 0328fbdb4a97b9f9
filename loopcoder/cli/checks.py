"""What refuses a run before anything is made: its config, this machine, and its folder."""

from __future__ import annotations

from pathlib import Path

from loopcoder.backends import Backends
from loopcoder.checkpoint.start import check_start
from loopcoder.config.check import check
from loopcoder.config.schema import Config
from loopcoder.metrics.throughput import peak_flops


def check_config(config: Config, world_size: int, backends: Backends) -> None:
    """Raise InputError for all that does not depend on memory or on a corpus.

    Args:
        config: Resolved, with its run_dir.
        world_size: Processes of the run.
        backends: Of this machine.
    """
    check(config, world_size, backends)
    check_folder(config, backends)


def check_folder(config: Config, backends: Backends) -> None:
    """Raise InputError where the run's folder, or the checkpoint that it branches from, does not
    let it start, or the device that it names is not known."""
    peak_flops(config.hardware, backends.gpu_name, config.precision.name)  # type: ignore[arg-type]
    check_start(config, Path(str(config.run_dir)))
