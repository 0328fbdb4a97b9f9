"""The table and the curves of a sweep, from the metrics of its runs."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loopcoder.metrics.writer import METRICS_FILE, merge_by_step, read_metrics


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep."""

    label: str
    """The swept values, as they were written."""
    num_loops: int
    run_dir: Path
    exit_code: int | None
    """None where it has not ended yet."""


@dataclass(frozen=True)
class Row:
    """What the table says about a run; None where it did not get that far."""

    point: str
    loops: int
    steps: int
    loss: float | None
    val: dict[str, float]
    """val/loss and val/loss/<domain>, by their names in metrics.jsonl."""
    tokens_per_s: float | None
    exit_code: int | None


def report_sweep(runs: Sequence[SweptRun], folder: Path, *, plot: bool) -> None:
    """Print the table; write it as sweep.md and sweep.json, and the loss curves as sweep.png.

    Args:
        plot: Draw the curves, if any run has a validation loss.
    """
    rows = [row_of(run) for run in runs]
    table = markdown(rows)
    print(table, flush=True)
    (folder / "sweep.md").write_text(table + "\n", encoding="utf-8")
    (folder / "sweep.json").write_text(
        json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8"
    )
    if plot and any(row.val for row in rows):
        from loopcoder.metrics.plots import plot_sweep

        plot_sweep([(run.label, run.run_dir) for run in runs], folder / "sweep.png")


def row_of(run: SweptRun) -> Row:
    """Read a run's row of the table from its metrics."""
    metrics = run.run_dir / METRICS_FILE
    lines = merge_by_step(read_metrics(metrics)) if metrics.exists() else []
    losses = [line["loss"] for line in lines if "loss" in line]
    speeds = [line["tokens_per_s"] for line in lines if "tokens_per_s" in line]
    val: dict[str, float] = {}
    for line in lines:
        val |= {k: v for k, v in line.items() if re.fullmatch(r"val/loss(/[^/]+)?", k)}
    return Row(
        point=run.label,
        loops=run.num_loops,
        steps=lines[-1]["step"] if lines else 0,
        loss=losses[-1] if losses else None,
        val=val,
        tokens_per_s=statistics.median(speeds) if speeds else None,
        exit_code=run.exit_code,
    )


def markdown(rows: Sequence[Row]) -> str:
    """Format the table of a sweep."""
    names = sorted({name for row in rows for name in row.val})
    header = ["point", "loops", "steps", "final loss", *names, "tokens/s", "exit"]
    body = [
        [
            row.point,
            str(row.loops),
            str(row.steps),
            _number(row.loss, ".4f"),
            *(_number(row.val.get(name), ".4f") for name in names),
            _number(row.tokens_per_s, ",.0f"),
            "-" if row.exit_code is None else str(row.exit_code),
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    lines = [header, ["-" * width for width in widths], *body]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
