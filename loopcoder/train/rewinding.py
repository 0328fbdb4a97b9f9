"""What becomes of a run after bad steps: it goes back to a checkpoint, or ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loopcoder.checkpoint.agreed import of_rank_0
from loopcoder.checkpoint.rewind import Rewind, go_back, last_before, rewinds_of
from loopcoder.config.schema import Config
from loopcoder.data.sampler import Position
from loopcoder.errors import LoopcoderError, Rewound, counted
from loopcoder.train.health import Trouble, diverged


def what_ends(
    trouble: Trouble,
    config: Config,
    run_dir: Path,
    position: Position,
    event: Callable[..., None],
) -> LoopcoderError:
    """Make the same command go back, if it may, and return the error that ends this process.

    Rank 0 decides and writes it down; all ranks call it, with no save under way.
    """
    rewind = of_rank_0(lambda: _decide(trouble, config, run_dir, position))
    if not isinstance(rewind, Rewind):
        return diverged(trouble, config.optim.lr, str(rewind))
    event("run_rewound", **_fields(rewind))
    last = rewind.sample + rewind.samples - 1
    return Rewound.of(
        f"{trouble}: the run goes back to step {rewind.to_step}",
        f"it then leaves out samples {rewind.sample} to {last} of data stage {rewind.stage + 1}, "
        "on which the steps after that were trained",
        "start the same command again to continue",
    )


def _decide(trouble: Trouble, config: Config, run_dir: Path, position: Position) -> Rewind | str:
    """Write down where the run goes back to; a text says why it does not."""
    most = config.faults.rewinds
    if most == 0:
        return "; faults.rewinds=0"
    if len(rewinds_of(run_dir)) >= most:
        return f"; the run went back {counted(most, 'time')} before (faults.rewinds={most})"
    checkpoint = last_before(run_dir, trouble.first, config.checkpoint.verify)
    if checkpoint is None:
        return f"; there is no checkpoint of before step {trouble.first} to go back to"
    try:
        return go_back(config, run_dir, checkpoint, position, str(trouble))
    except OSError as error:
        return f"; the run cannot go back: {error}"


def _fields(rewind: Rewind) -> dict[str, Any]:
    return {name: value for name, value in asdict(rewind).items() if name != "time"}
