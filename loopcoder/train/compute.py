"""How long this rank computes in a step, without its waiting for others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

_OWN = ("forward-compute", "backward-compute")
"""Timers of megatron-core's schedules around what a rank does itself. Sending and receiving between
stages, reducing gradients and the optimizer are outside."""


class ComputeTime:
    """Stands for megatron-core's `timers`, of which it keeps those of `_OWN`.

    On a GPU it records events, which it reads when the device has passed them: nothing waits.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._measures = False
        self._began: Any = None
        self._spans: list[tuple[Any, Any]] = []
        """Of the step that is measured: begin and end of each pass."""
        self._unread: list[list[tuple[Any, Any]]] = []
        """The spans of steps that the device may not have passed yet."""
        self._steps: list[float] = []
        """Seconds of each step since they were taken."""

    @contextmanager
    def step(self) -> Iterator[None]:
        """Measure what the block computes as one step; outside of it the timers do nothing."""
        self._spans, self._measures = [], True
        try:
            yield
        finally:
            self._measures = False
        self._unread.append(self._spans)
        self._read(only_passed=True)

    def take(self) -> float:
        """Return the median of the steps since the last call in seconds, 0 if there was none; on a
        GPU this waits for them."""
        self._read(only_passed=False)
        seconds = median(self._steps) if self._steps else 0.0
        self._steps = []
        return seconds

    def __call__(self, name: str, log_level: int | None = None) -> ComputeTime | _Ignored:
        """Return the timer of a name, as megatron-core asks for it."""
        return self if self._measures and name in _OWN else _IGNORED

    def start(self, barrier: bool = False) -> None:
        """Begin a pass; there is no barrier."""
        self._began = self._now()

    def stop(self, barrier: bool = False) -> None:
        """End a pass."""
        self._spans.append((self._began, self._now()))

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _read(self, *, only_passed: bool) -> None:
        while self._unread:
            spans = self._unread[0]
            if self._on_gpu and spans:
                last = spans[-1][1]
                if not only_passed:
                    last.synchronize()
                elif not last.query():
                    return
            self._steps.append(sum(self._seconds(*span) for span in spans))
            self._unread.pop(0)

    def _seconds(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin)


class _Ignored:
    """A timer that nobody reads."""

    def start(self, barrier: bool = False) -> None:
        pass

    def stop(self, barrier: bool = False) -> None:
        pass


_IGNORED = _Ignored()
