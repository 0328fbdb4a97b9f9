"""What a candidate may use."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Of one candidate. Integers but for `timeout_s`."""

    timeout_s: float = 3.0
    """For the definition and all calls, of wall time."""
    memory_bytes: int = 1 << 30
    """Address space of each of its processes."""
    processes: int = 4
    """Of it at a time, threads included."""
    scratch_bytes: int = 64 << 20
    """In the folder that it may write to; the largest file has a quarter of it."""
    open_files: int = 64
    message_bytes: int = 16 << 20
    """The largest value that it may return, as it is written for the judge."""
    isolated: bool = True
    """Namespaces and no privileges; False: the limits of time, memory and files alone."""

    @property
    def cpu_s(self) -> int:
        """Of each process; the kernel counts whole seconds."""
        return math.ceil(self.timeout_s) + 1
