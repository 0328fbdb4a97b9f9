"""The progress of a run on the screen: a live bar, or a plain line now and then."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from loopcoder.metrics.words import (
    Record,
    describe,
    describe_evaluation,
    describe_samples,
    duration,
    human,
)


class ProgressSink:
    """Show the run: a live bar on a terminal, else a plain line now and then; every evaluation.

    A log file (torchrun, CI) gets a line at the first and last step and at most every `every_s`
    seconds between.
    """

    def __init__(
        self,
        max_steps: int,
        *,
        start_step: int = 0,
        title: str = "run",
        stream: TextIO | None = None,
        every_s: float = 10.0,
        rich_installed: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._max_steps = max_steps
        self._stream = stream or sys.stdout
        self._every_s = every_s
        self._clock = clock
        self._eta = _Eta(max_steps)
        self._latest: dict[str, Any] = {}
        self._last_print = -math.inf
        live = rich_installed and self._stream.isatty()
        self._bar = _LiveBar(max_steps, start_step, title, self._stream) if live else None

    def log(self, record: Record) -> None:
        now = self._clock()
        self._latest.update(record)
        step = record["step"]
        if "loss" in record:
            self._eta.update(step, now)
            fields = describe(self._latest, self._max_steps, self._eta.seconds)
            if self._bar is not None:
                self._bar.update(step, fields)
            elif now - self._last_print >= self._every_s or step >= self._max_steps:
                self._print("  ".join([f"step {step}/{self._max_steps}", *fields]))
                self._last_print = now
        if "val/loss" in record:
            self._print(describe_evaluation(record))

    def samples(self, records: Sequence[Record]) -> None:
        self._print(describe_samples(records))

    def event(self, kind: str, **fields: Any) -> None:
        if kind in _SAID_OTHERWISE:
            return
        if kind == "checkpoint_saved":
            size, took = human(fields["bytes"]), fields["seconds"]
            seconds = duration(took) if took >= 10 else f"{took:.1f} s"
            self._print(f"saved step {fields['step']} ({size}B, {seconds})")
            return
        values = (f"{k}={v}" for k, v in fields.items() if isinstance(v, str | int | float))
        self._print(" ".join([f"[{kind}]", *values]))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.print(line)
        else:
            print(line, file=self._stream, flush=True)


_SAID_OTHERWISE = (
    "run_started",
    "run_starts",
    "run_continues",
    "run_diverged",
    "run_rewound",
    "run_done",
    "note",
    "metrics_resumed",
    "checkpoint_incomplete",
    "checkpoint_deleted",
    "checkpoint_set_aside",
    "store_unreachable",
    "store_reachable",
    "copy_not_deleted",
)
"""Events that are for the record, or that the run says in a sentence."""


class _LiveBar:
    """A bar and a line of numbers below it, redrawn in place by rich."""

    def __init__(self, max_steps: int, start_step: int, title: str, stream: TextIO):
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.text import Text

        self._console = Console(file=stream, highlight=False)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            console=self._console,
            expand=True,
        )
        self._task = self._bar.add_task(title, total=max_steps, completed=start_step)
        self._numbers = Text(style="dim")
        self._live = Live(
            Group(self._bar, self._numbers), console=self._console, refresh_per_second=4
        )
        self._live.start()

    def update(self, step: int, fields: list[str]) -> None:
        self._bar.update(self._task, completed=step)
        self._numbers.plain = "  ".join(fields)

    def print(self, line: str) -> None:
        self._console.print(line, markup=False)

    def close(self) -> None:
        self._live.stop()


class _Eta:
    """Seconds left, by the mean pace of this session with its evaluations and checkpoints."""

    def __init__(self, max_steps: int):
        self._max_steps = max_steps
        # The first record starts the clock: the step before it includes compilation and warm-up.
        self._first: tuple[int, float] | None = None
        self.seconds: float | None = None

    def update(self, step: int, now: float) -> None:
        if self._first is None:
            self._first = (step, now)
            return
        first_step, start = self._first
        if step > first_step:
            self.seconds = (now - start) / (step - first_step) * max(0, self._max_steps - step)
