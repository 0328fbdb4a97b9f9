"""What is measured between two records: wall time, waiting for data, tokens; and memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from loopcoder.data.loader import StepData
from loopcoder.metrics.throughput import Throughput


class Window:
    """Wall time, waiting for data and tokens since the last record; evaluation and saving do not
    count."""

    def __init__(self) -> None:
        self.is_new = True
        """No step has been counted yet."""
        self._reset()

    def _reset(self) -> None:
        self._began = time.perf_counter()
        self._steps = 0
        self.tokens_by_loops: dict[int, int] = {}
        """Tokens of steps that ran so many loops."""
        self._waited_s = self._excluded_s = 0.0

    def waiting_for(self, steps: Iterator[StepData]) -> Iterator[StepData]:
        """Yield the steps, adding up how long each takes to come."""
        while True:
            before = time.perf_counter()
            data = next(steps, None)
            if data is None:
                return
            self._waited_s += time.perf_counter() - before
            yield data

    def add(self, data: StepData, loops: int) -> None:
        """Count a step, which ran `loops` loops."""
        self._steps += 1
        self.is_new = False
        tokens = data.after.tokens - data.before.tokens
        self.tokens_by_loops[loops] = self.tokens_by_loops.get(loops, 0) + tokens

    @contextmanager
    def excluding(self) -> Iterator[None]:
        """Leave what happens inside out of the step time."""
        before = time.perf_counter()
        yield
        self._excluded_s += time.perf_counter() - before

    def measure(self, throughput: Throughput) -> dict[str, float]:
        """Return the timing fields of a record, and start anew."""
        seconds = max(time.perf_counter() - self._began - self._excluded_s, 1e-9)
        fields = {
            "step_time_s": seconds / max(self._steps, 1),
            "data_wait_s": self._waited_s / max(self._steps, 1),
            **throughput.measure(sum(self.tokens_by_loops.values()), seconds),
        }
        self._reset()
        return fields


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this rank so far, in bytes: of its GPU, or resident memory on a
    machine without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
