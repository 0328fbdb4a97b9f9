"""How far the points of a sweep are that run side by side: a table that lives on a terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from launch.sweep.ledger import last_exit
from launch.sweep.points import Point
from loopcoder.backends import Backends
from loopcoder.errors import EXIT_DONE
from loopcoder.metrics.tail import newest_values
from loopcoder.metrics.writer import METRICS_FILE

_EVERY_S = {True: 1.0, False: 60.0}
"""How often it is drawn on a terminal, and a line written elsewhere."""
_VALUES = ("step", "loss", "val/loss", "tokens_per_s")


class Board:
    """Shows points while they run; what is printed meanwhile scrolls above it."""

    def __init__(self, backends: Backends):
        self._live: Any = None
        self._on_terminal = sys.stdout.isatty() and backends.has("rich")
        self._drawn_s = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, points: Sequence[Point], running: Mapping[str, str], ledger: Path) -> None:
        """Show where the points are, now and then."""
        now = time.monotonic()
        if now - self._drawn_s < _EVERY_S[self._on_terminal]:
            return
        begins, self._drawn_s = self._drawn_s == -math.inf, now
        rows = [state_of(point, running, ledger) for point in points]
        if self._on_terminal:
            self._draw(rows)
        elif not begins:
            states = [f"{row[0]}: step {row[2]}, {row[3]}" for row in rows if row[0] in running]
            print("; ".join(states), flush=True)

    def _draw(self, rows: list[list[str]]) -> None:
        from rich.live import Live
        from rich.table import Table

        table = Table(*COLUMNS)
        for row in rows:
            table.add_row(*row)
        if self._live is None:
            self._live = Live(table, auto_refresh=False)
            self._live.start()
        self._live.update(table, refresh=True)


COLUMNS = ("point", "state", "step", "loss", "val/loss", "tokens/s", "left")


def state_of(point: Point, running: Mapping[str, str], ledger: Path) -> list[str]:
    """Return a row of the table: COLUMNS of one point."""
    values: dict[str, float] = {}
    with suppress(OSError):
        values = newest_values(point.run_dir / METRICS_FILE, _VALUES)
    last = point.config.train.max_steps
    step, speed = int(values.get("step", 0)), values.get("tokens_per_s")
    code = last_exit(point, ledger)
    state = {None: "waits", EXIT_DONE: "done"}.get(code, f"ended with {code}")
    left = ""
    if point.label in running:
        state = running[point.label]
        if speed:
            per_step = point.config.train.global_batch_size * point.config.stages[-1].seq_length
            left = _in_words((last - step) * per_step / speed)
    return [
        point.label,
        state,
        f"{step} of {last}",
        _number(values.get("loss"), ".3f"),
        _number(values.get("val/loss"), ".3f"),
        _number(speed, ",.0f"),
        left,
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _in_words(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
