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
    """Of all its processes together; each may have its part as address space."""
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
    def process_bytes(self) -> int:
        """Address space of each process of the candidate."""
        return self.memory_bytes // self.processes

    @property
    def judge_bytes(self) -> int:
        """Address space of the judge: values may be large, and a test may repeat them."""
        return 2 * self.process_bytes

    @property
    def check_bytes(self) -> int:
        """What a check may take of the machine's memory."""
        return self.memory_bytes + self.judge_bytes + self.scratch_bytes

    @property
    def cpu_s(self) -> int:
        """Of each process; the kernel counts whole seconds."""
        return math.ceil(self.timeout_s) + 1
