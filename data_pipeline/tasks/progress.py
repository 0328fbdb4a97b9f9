"""Progress of a build: one bar per stage on a terminal, plain lines elsewhere; and its cost."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import TypedDict

from data_pipeline.tasks.work import Cost
from loopcoder.errors import counted

Report = Callable[[str], None]


def silent(_: str) -> None:
    """Report to nobody."""


_INTERVAL_S = 0.5
_LINE_INTERVAL_S = 15.0
_NAMED = 10
"""Reasons that a line names."""


@contextlib.contextmanager
def watched(title: str, total: int, done: Callable[[], int], report: Report) -> Iterator[None]:
    """Show how many of `total` tasks are done while the block runs."""
    stop = threading.Event()
    show = _bar if sys.stderr.isatty() and find_spec("rich") is not None else _lines
    thread = threading.Thread(target=show, args=(title, total, done, report, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _bar(title: str, total: int, done: Callable[[], int], _: Report, stop: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task(title, total=total)
        while not stop.wait(_INTERVAL_S):
            bar.update(task, completed=done())


def _lines(
    title: str, total: int, done: Callable[[], int], report: Report, stop: threading.Event
) -> None:
    start = time.monotonic()
    while not stop.wait(_LINE_INTERVAL_S):
        report(
            f"data: {title}: {done()} of {counted(total, 'task')}, {time.monotonic() - start:.0f} s"
        )


class Paced:
    """Tells a report how far something is that has no known end, every 15 s."""

    def __init__(self, report: Report, interval_s: float = _LINE_INTERVAL_S) -> None:
        self._report, self._interval_s = report, interval_s
        self._next = time.monotonic() + interval_s

    def __call__(self, line: str, *values: object) -> None:
        """Report a line, a format of the values, if it is time for one."""
        if time.monotonic() >= self._next:
            self._report(line.format(*values))
            self._next = time.monotonic() + self._interval_s


class StageCost(TypedDict):
    """What a stage cost, as it stands in the manifest."""

    tasks: int
    seconds: float
    cpu_s: float
    peak_rss_bytes: int
    bytes_in: int


def total_cost(costs: Iterable[Cost]) -> StageCost:
    """Return what a stage cost: the sum over its tasks, and the peak memory of the largest."""
    total: StageCost = {"tasks": 0, "seconds": 0, "cpu_s": 0, "peak_rss_bytes": 0, "bytes_in": 0}
    for cost in costs:
        total["tasks"] += 1
        total["seconds"] = round(total["seconds"] + cost.seconds, 3)
        total["cpu_s"] = round(total["cpu_s"] + cost.cpu_s, 3)
        total["peak_rss_bytes"] = max(total["peak_rss_bytes"], cost.peak_rss_bytes)
        total["bytes_in"] += cost.bytes_in
    return total


def left_out(counts: Counter[str]) -> str | None:
    """Return the line that says what a stage dropped, the most frequent first."""
    counts = +counts
    if not counts:
        return None
    most = counts.most_common(_NAMED)
    rest = counts.total() - sum(n for _, n in most)
    names = [f"{n:,} {reason}" for reason, n in most] + [f"{rest:,} others"] * bool(rest)
    return f"data:   left out: {', '.join(names)}"


def described(title: str, wall_s: float, cost: StageCost) -> str:
    """Return the line for a stage that is done."""
    parts = [f"{wall_s:.1f} s", f"{cost['cpu_s']:.1f} CPU-s"]
    if cost["bytes_in"]:
        parts.insert(0, f"{cost['bytes_in'] / 1e6:.1f} MB")
        parts.append(f"{cost['bytes_in'] / 1e6 / max(cost['cpu_s'], 1e-3):.0f} MB/CPU-s")
    parts.append(f"{cost['peak_rss_bytes'] / 1e6:.0f} MB memory per task")
    return f"data: {title}: {', '.join(parts)}"
