"""The plot of a sweep: validation loss while training, and at the end by the number of loops."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopcoder.errors import InputError, counted
from loopcoder.metrics.drawing import (
    FAINT,
    MARKERS,
    Series,
    color_of,
    draw,
    lengths,
    require_matplotlib,
    style,
)
from loopcoder.metrics.loops import differs_in_loops_only
from loopcoder.metrics.seeds import Mean
from loopcoder.metrics.sweep_cost import device_hours
from loopcoder.metrics.sweep_rows import PointRow
from loopcoder.metrics.words import human
from loopcoder.metrics.writer import METRICS_FILE, Record, merge_by_step, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_sweep(points: Sequence[PointRow], out: Path) -> Path:
    """Draw the validation loss of a sweep's points into the PNG `out`; return it.

    Left against tokens, the mean over a point's seeds. Where the points differ in their loops,
    right at the end of training: a line through those that differ from the first in num_loops
    alone, the others as points with their names, bars of one standard error on both. A point
    without an evaluation (it failed, or has just begun) is left out. Raises InputError without
    matplotlib or when no run has an evaluation.
    """
    require_matplotlib()
    with_loss = [point for point in points if point.loss]
    if not with_loss:
        raise InputError.of(
            f"of {counted(len(points), 'point')} of the sweep none has a validation loss",
            "the points are compared by it",
            "train them with eval.at_end=true, or a smaller eval.interval=N",
        )
    return draw(out, lambda fig: _sweep(fig, with_loss), width=10.0)


def plot_costs(points: Sequence[PointRow], out: Path) -> Path:
    """Draw the validation loss of a sweep's points against FLOPs and device-hours, the mean over
    a point's seeds, into the PNG `out`; return it. Raises InputError without matplotlib."""
    require_matplotlib()
    return draw(out, lambda fig: _costs(fig, points), width=10.0)


def _costs(fig: Figure, points: Sequence[PointRow]) -> None:
    by_flops, by_hours = fig.subplots(1, 2, sharey=True)
    for i, point in enumerate(points):
        runs = [records_of(run_dir) for run_dir in point.run_dirs]
        hours = [device_hours(run) for run in runs]
        tokens, losses = mean_curve(runs)
        look: dict[str, Any] = dict(
            color=color_of(i),
            marker=MARKERS[i % 7],
            markersize=4,
            linestyle=("-", "--", ":")[i // 7 % 3],
            label=point.point,
        )
        if tokens:
            by_flops.plot([t * point.flops_per_token for t in tokens], losses, **look)
            timed = [
                (t, y) for t, y in zip(tokens, losses, strict=True) if any(t in h for h in hours)
            ]
            spent = [statistics.fmean(h[t] for h in hours if t in h) for t, _ in timed]
            by_hours.plot(spent, [y for _, y in timed], **look)
    style(by_flops, "validation loss by FLOPs", "training FLOPs", "validation loss (nats / token)")
    style(by_hours, "by hours of all devices", "device-hours of training", "")
    if by_flops.lines:
        by_flops.legend(frameon=False, fontsize=9)


def _sweep(fig: Figure, points: Sequence[PointRow]) -> None:
    if len({point.model.num_loops for point in points}) == 1:
        _curves(fig.subplots(), points)
        return
    left, right = fig.subplots(1, 2, width_ratios=(3, 2))
    _curves(left, points)
    _by_loops(right, points)


def _curves(ax: Axes, points: Sequence[PointRow]) -> None:
    """Draw the validation loss of every point against tokens; thinner that at further lengths."""
    for i, point in enumerate(points):
        runs = [records_of(run_dir) for run_dir in point.run_dirs]
        further = {n: f"val/loss/len{n}" for n in lengths([r for run in runs for r in run])}
        for length, key in {0: "val/loss", **further}.items():
            tokens, losses = mean_curve(runs, key)
            if tokens:
                name = f"{point.point}, {length} tokens" if length else point.point
                ax.plot(
                    tokens,
                    losses,
                    color=color_of(i),
                    marker=MARKERS[i % 7],
                    markersize=4,
                    linewidth=0.8 if length else 1.6,
                    linestyle=("-", "--", ":")[i // 7 % 3],
                    label=f"{name}: {losses[-1]:.3f}",
                )
    ax.xaxis.set_major_formatter(lambda value, _: human(value))
    names = {point.model.name for point in points}
    title = f"{names.pop()}: " if len(names) == 1 else ""
    y_label = "validation loss (nats / token)"
    style(ax, f"{title}validation loss of the sweep", "tokens trained", y_label)
    if ax.lines:
        ax.legend(frameon=False, fontsize=9)


def records_of(run_dir: Path) -> list[Record]:
    """Return a run's metrics, one record per step; none where it has not begun."""
    metrics = run_dir / METRICS_FILE
    return merge_by_step(read_metrics(metrics)) if metrics.exists() else []


def mean_curve(runs: Sequence[list[Record]], key: str = "val/loss") -> Series:
    """Return tokens and a value, the mean over the runs at the tokens that all of them with such a
    value have."""
    found = [{r["tokens"]: r[key] for r in run if key in r and "tokens" in r} for run in runs]
    curves = [curve for curve in found if curve]
    if not curves:
        return [], []
    tokens = sorted(set.intersection(*(set(curve) for curve in curves)))
    return tokens, [sum(curve[t] for curve in curves) / len(curves) for t in tokens]


def _by_loops(ax: Axes, points: Sequence[PointRow]) -> None:
    """Draw the last validation loss against the passes through the first point's layers."""
    first = points[0].model
    best: dict[int, Mean] = {}
    controls: Counter[float] = Counter()
    for i, point in enumerate(points):
        loss, model = point.mean["val/loss"], point.model
        # The dense model with twice the layers stands where two loops are: at equal FLOPs.
        passes = model.num_loops * model.num_layers / first.num_layers
        is_control = not differs_in_loops_only(model, first)
        controls[passes] += is_control
        place = passes + 0.1 * controls[passes] * is_control  # beside each other, bars and all
        ax.errorbar(
            place,
            loss.mean,
            yerr=loss.error,
            color=color_of(i),
            marker=MARKERS[i % 7],
            markersize=7,
            linestyle="none",
            capsize=4,
        )
        if is_control:
            name = point.point.removeprefix("variant=")
            ax.annotate(name, (place, loss.mean), (6, -3), textcoords="offset points", fontsize=9)
        else:
            so_far = best.get(model.num_loops, loss)
            best[model.num_loops] = min(so_far, loss, key=lambda mean: mean.mean)
    ax.plot(sorted(best), [best[loops].mean for loops in sorted(best)], color=FAINT, zorder=0)
    for loops, mean in best.items():
        ax.annotate(
            f"{mean.mean:.3f}",
            (loops, mean.mean + (mean.error or 0)),
            (0, 10),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    ax.set_xticks(sorted(best))
    ax.margins(x=0.15, y=0.2)
    style(ax, "final validation loss by loops", "num_loops, or as many layers executed", "")
