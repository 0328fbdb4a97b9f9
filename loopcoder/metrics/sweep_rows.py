"""What the runs of a sweep came to: one row per run, and one per point, which may have seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loopcoder.config.schema import Config, ModelConfig
from loopcoder.metrics.seeds import BySeed, Mean, mean_of, paired_difference
from loopcoder.metrics.sweep_cost import device_hours
from loopcoder.metrics.words import VAL_DOMAIN
from loopcoder.metrics.writer import METRICS_FILE, merge_by_step, read_metrics


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep."""

    label: str
    """The swept values, as they were written."""
    point: str
    """The same without the seed: runs that share it are one point."""
    config: Config
    run_dir: Path
    exit_code: int | None
    """None where it has not ended yet."""
    flops_per_token: float
    """Of training, attention counted under its causal mask."""


@dataclass(frozen=True)
class Row:
    """What the table says about a run; None where it did not get that far."""

    run: str
    seed: int
    loops: int
    steps: int
    loss: float | None
    val: dict[str, float]
    """val/loss and val/loss/<domain>, by their names in metrics.jsonl."""
    tokens_per_s: float | None
    exit_code: int | None
    weighting: str | None = None
    """val/weighting of its last evaluation; None: by held-out tokens, as runs once did."""
    flops: float | None = None
    """Of training so far."""
    device_hours: float | None = None
    """Of training so far, all devices together."""


@dataclass(frozen=True)
class PointRow:
    """What the table says about a point: its runs with all seeds."""

    point: str
    model: ModelConfig
    run_dirs: list[Path]
    val: Mapping[str, BySeed]
    """By name in metrics.jsonl and seed, of the runs that have it."""
    mean: dict[str, Mean]
    """By name in metrics.jsonl."""
    difference: dict[str, Mean]
    """To the first point, paired by seed."""
    tokens_per_s: float | None
    flops: float | None
    """Of training, the mean over seeds."""
    device_hours: float | None
    """Of training, all devices together, the mean over seeds."""
    flops_per_token: float
    exit_codes: list[int | None]

    @property
    def loss(self) -> BySeed:
        """The validation loss, by seed."""
        return self.val.get("val/loss", {})

    @property
    def exit_code(self) -> int | None:
        """That of a run that failed, if one did; None while one has not ended; else 0."""
        failed = [code for code in self.exit_codes if code]
        return failed[0] if failed else None if None in self.exit_codes else 0


def row_of(run: SweptRun) -> Row:
    """Read a run's row of the table from its metrics."""
    metrics = run.run_dir / METRICS_FILE
    lines = merge_by_step(read_metrics(metrics)) if metrics.exists() else []
    losses = [line["loss"] for line in lines if "loss" in line]
    speeds = [line["tokens_per_s"] for line in lines if "tokens_per_s" in line]
    val: dict[str, float] = {}
    weighting = None
    for line in lines:
        if "val/loss" in line:
            weighting = line.get("val/weighting")
        val |= {k: v for k, v in line.items() if k == "val/loss" or VAL_DOMAIN.fullmatch(k)}
    tokens = [line["tokens"] for line in lines if "tokens" in line]
    hours = list(device_hours(lines).values())
    return Row(
        run=run.label,
        seed=run.config.seed,
        loops=run.config.model.num_loops,
        steps=lines[-1]["step"] if lines else 0,
        loss=losses[-1] if losses else None,
        val=val,
        tokens_per_s=statistics.median(speeds) if speeds else None,
        exit_code=run.exit_code,
        weighting=weighting,
        flops=tokens[-1] * run.flops_per_token if tokens else None,
        device_hours=hours[-1] if hours else None,
    )


def point_rows(runs: Sequence[SweptRun], rows: Sequence[Row]) -> list[PointRow]:
    """Gather the rows of all runs by point, in the order in which the points come first."""
    gathered: dict[str, list[tuple[SweptRun, Row]]] = {}
    for run, row in zip(runs, rows, strict=True):
        gathered.setdefault(run.point, []).append((run, row))
    points: list[PointRow] = []
    for name, members in gathered.items():
        names = sorted({key for _, row in members for key in row.val})
        val = {k: {row.seed: row.val[k] for _, row in members if k in row.val} for k in names}
        first = points[0].val if points else val
        pairs = {k: paired_difference(val[k], first[k]) for k in names if k in first}
        means = {k: mean_of(list(losses.values())) for k, losses in val.items()}
        speeds = [row.tokens_per_s for _, row in members if row.tokens_per_s is not None]
        points.append(
            PointRow(
                point=name,
                model=members[0][0].config.model,
                run_dirs=[run.run_dir for run, _ in members],
                val=val,
                mean={k: mean for k, mean in means.items() if mean},
                difference={k: mean for k, mean in pairs.items() if mean},
                tokens_per_s=statistics.median(speeds) if speeds else None,
                flops=_mean([row.flops for _, row in members]),
                device_hours=_mean([row.device_hours for _, row in members]),
                flops_per_token=members[0][0].flops_per_token,
                exit_codes=[run.exit_code for run, _ in members],
            )
        )
    return points


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None
