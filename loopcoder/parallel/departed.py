"""Ranks that end before all have met: no store tells of them, but the exit codes that they left."""

from __future__ import annotations

import os
import time
from pathlib import Path

from loopcoder.errors import EXIT_VARIABLE, ProcessLost, recorded_exits

_LOOK_EVERY_S = 1.0


class Departed:
    """Looks for ranks that have ended, as far as this one sees where they leave their codes."""

    def __init__(self) -> None:
        path = os.environ.get(EXIT_VARIABLE)
        self._path = None if path is None else Path(path)
        self._next = 0.0

    def look(self) -> None:
        """Raise ProcessLost, with the exit code of the first, once a rank has ended; call it while
        waiting for others, as often as you like."""
        now = time.monotonic()
        if self._path is None or now < self._next:
            return
        self._next = now + _LOOK_EVERY_S
        for rank, code in recorded_exits(self._path).items():
            lost = ProcessLost.of(
                f"rank {rank} has ended with {code} before all ranks had met",
                "every process of a run has to be there before the first step",
                f"see what rank {rank} has printed",
            )
            lost.exit_code = code
            raise lost
