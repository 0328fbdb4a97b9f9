"""What a build shows: a bar a stage on a terminal, else lines; and what a stage cost."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

Report = Callable[[str], None]

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
        report(f"data: {title}: {done()} of {total} tasks, {time.monotonic() - start:.0f} s")


def total_cost(costs: Sequence[Mapping[str, float]], bytes_in: float) -> dict[str, Any]:
    """Return what a stage cost: the sum over its tasks, and the peak memory of the largest."""
    return {
        "tasks": len(costs),
        "seconds": round(sum(cost["seconds"] for cost in costs), 3),
        "cpu_s": round(sum(cost["cpu_s"] for cost in costs), 3),
        "peak_rss_bytes": max((int(cost.get("peak_rss_bytes", 0)) for cost in costs), default=0),
        "bytes_in": int(bytes_in),
    }


def left_out(facts: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the line that says what the tasks of a stage dropped, the most frequent first."""
    counts: Counter[str] = Counter()
    for fact in facts:
        counts.update(fact.get("drops", {}))
        for tally in fact.get("tallies", ()):
            counts.update(tally["drops"])
            counts.update({f"files {k}": n for k, n in tally["file_drops"].items()})
    # held out is not left out, and what exceeds the quotas is in the table of languages
    for expected in ("held_out", "beyond_quota"):
        counts.pop(expected, None)
    counts = +counts
    if not counts:
        return None
    most = counts.most_common(_NAMED)
    rest = counts.total() - sum(n for _, n in most)
    names = [f"{n:,} {reason}" for reason, n in most] + [f"{rest:,} others"] * bool(rest)
    return f"data:   left out: {', '.join(names)}"


def described(title: str, wall_s: float, cost: Mapping[str, Any]) -> str:
    """Return the line for a stage that is done."""
    parts = [f"{wall_s:.1f} s", f"{cost['cpu_s']:.1f} CPU-s"]
    if cost["bytes_in"]:
        parts.insert(0, f"{cost['bytes_in'] / 1e6:.1f} MB")
        parts.append(f"{cost['bytes_in'] / 1e6 / max(cost['cpu_s'], 1e-3):.0f} MB/CPU-s")
    parts.append(f"{cost['peak_rss_bytes'] / 1e6:.0f} MB memory a task")
    return f"data: {title}: {', '.join(parts)}"
