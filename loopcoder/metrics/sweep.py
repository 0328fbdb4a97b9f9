"""The tables and the plot of a sweep, from the metrics of its runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loopcoder.metrics.loops import LoopRow, Loops, compare_loops
from loopcoder.metrics.phi import Phi
from loopcoder.metrics.published import EQUAL_FLOPS, EQUAL_WEIGHTS, PHI, Published
from loopcoder.metrics.seeds import Mean
from loopcoder.metrics.sweep_rows import PointRow, Row, SweptRun, point_rows, row_of


def report_sweep(
    runs: Sequence[SweptRun], folder: Path, *, plot: bool, notes: Sequence[str] = ()
) -> None:
    """Print the tables; write them as sweep.md and sweep.json, the curves by tokens as sweep.png
    and by what they cost as sweep_cost.png.

    A point that ran with several seeds is one row, a mean; sweep.md and sweep.json have the runs
    too. Where the first point is R = 1 and all have equally many tokens, a second table says what
    the loops of the others bring.

    Args:
        plot: Draw the curves, if any run has a validation loss.
        notes: Paragraphs that follow the tables.
    """
    rows = [row_of(run) for run in runs]
    points = point_rows(runs, rows)
    loops = compare_loops(points) if _have_equal_tokens(runs) else None
    has_seeds = len(points) < len(rows)
    parts = [point_table(points) if has_seeds else run_table(rows)]
    if loops is not None:
        parts.append(loop_table(loops))
    elif compare_loops(points) is not None:
        parts.append(
            "The points do not have equally many tokens, for which phi and the published "
            "differences between loops are: neither is shown."
        )
    parts += [*_mixed_weightings(rows), *notes]
    print("\n\n".join(parts), flush=True)
    if has_seeds:
        parts.append(run_table(rows))
    (folder / "sweep.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (folder / "sweep.json").write_text(
        json.dumps(
            {
                "points": [_point_json(point) for point in points],
                "loops": asdict(loops) if loops else None,
                "runs": [asdict(row) for row in rows],
            },
            indent=1,
        )
        + "\n",
        encoding="utf-8",
    )
    if plot and any(row.val for row in rows):
        from loopcoder.metrics.sweep_plot import plot_costs, plot_sweep

        plot_sweep(points, folder / "sweep.png")
        plot_costs(points, folder / "sweep_cost.png")


def _have_equal_tokens(runs: Sequence[SweptRun]) -> bool:
    """Say whether all runs are to see as many tokens, whatever became of them."""
    planned = {
        (
            run.config.train.max_steps * run.config.train.global_batch_size,
            tuple(stage.seq_length for stage in run.config.stages),
        )
        for run in runs
    }
    return len(planned) == 1


def _mixed_weightings(rows: Sequence[Row]) -> Iterator[str]:
    """Yield which runs' val/loss does not compare with that of the others."""
    evaluated = [row for row in rows if row.val]
    older = [row.run for row in evaluated if row.weighting is None]
    if 0 < len(older) < len(evaluated):
        yield (
            f"val/loss of {', '.join(older)} weighs domains by their held-out tokens, as runs once "
            "did, that of the others by the mixture: only val/loss/<domain> compares."
        )


def run_table(rows: Sequence[Row]) -> str:
    """Format one row per run."""
    names = sorted({name for row in rows for name in row.val})
    header = [
        "run",
        "loops",
        "steps",
        "final loss",
        *names,
        "FLOPs",
        "device-hours",
        "tokens/s",
        "exit",
    ]
    body = [
        [
            row.run,
            str(row.loops),
            str(row.steps),
            _number(row.loss, ".4f"),
            *(_number(row.val.get(name), ".4f") for name in names),
            _number(row.flops, ".3g"),
            _number(row.device_hours, ".3g"),
            _number(row.tokens_per_s, ",.0f"),
            _number(row.exit_code, "d"),
        ]
        for row in rows
    ]
    return markdown(header, body)


def point_table(points: Sequence[PointRow]) -> str:
    """Format one row per point, with standard errors and the difference to the first point."""
    names = sorted({name for point in points for name in point.mean})
    header = ["point", "loops", "layers", "seeds", *names, "difference"]
    header += ["FLOPs", "device-hours", "tokens/s", "exit"]
    body = [
        [
            point.point,
            str(point.model.num_loops),
            str(point.model.num_layers),
            str(len(point.loss)),
            *(_mean(point.mean.get(name)) for name in names),
            "-" if point is points[0] else _mean(point.difference.get("val/loss"), "+.4f"),
            _number(point.flops, ".3g"),
            _number(point.device_hours, ".3g"),
            _number(point.tokens_per_s, ",.0f"),
            _number(point.exit_code, "d"),
        ]
        for point in points
    ]
    notes = (
        "Losses in nats per token; ± is the standard error of the mean over seeds. The difference "
        f"is of val/loss to {points[0].point}, paired by seed."
    )
    return f"{markdown(header, body)}\n\n{notes}"


def loop_table(loops: Loops) -> str:
    """Format what loops bring, the published figure beside ours, and where it was published."""
    header = ["val/loss", f"less {loops.one}", "published"]
    if loops.dense:
        header += [f"less {loops.dense}", "published", "phi", "published"]
    body = [_loop_cells(row, has_dense=loops.dense is not None) for row in loops.rows]
    if loops.fit:
        name = f"R = {', '.join(map(str, loops.fit.loops))}"
        body.append([name, "", "", "", "", _phi(loops.fit), _range(PHI)])
    return "\n\n".join([markdown(header, body), *_loop_notes(loops)])


def _loop_cells(row: LoopRow, *, has_dense: bool) -> list[str]:
    cells = [row.point, _mean(row.equal_weights, "+.4f"), _range(row.published_equal_weights)]
    if has_dense:
        cells += [_mean(row.equal_flops, "+.4f"), _range(row.published_equal_flops)]
        cells += [_phi(row.phi), _range(PHI) if row.phi else "-"]
    return cells


def _loop_notes(loops: Loops) -> Iterator[str]:
    """Yield what the columns mean and where the figures were published."""
    yield f"Against {loops.one}: equal weights and tokens. Published: {EQUAL_WEIGHTS[2].source}."
    if loops.dense is None:
        return
    yield f"Against {loops.dense}: equal FLOPs and depth. Published: {EQUAL_FLOPS[2].source}."
    phis = [phi for phi in (loops.fit, *(row.phi for row in loops.rows)) if phi]
    if not phis:
        yield f"phi is not defined: {loops.dense} has no lower loss than {loops.one}."
        return
    without = "one seed, so phi has no interval"
    if any(phi.seeds > 1 and phi.interval is None for phi in phis):
        without = f"no interval: with some seed {loops.dense} is not below {loops.one}"
    has_interval = all(phi.interval for phi in phis)
    yield (
        "phi: R loops are worth R^phi times the layers (loopcoder/metrics/phi.py); "
        f"{'95% by bootstrap over seeds' if has_interval else without}. Published: {PHI.source}."
    )


def _point_json(point: PointRow) -> dict[str, Any]:
    plain = asdict(point)
    model, _, _ = plain.pop("model"), plain.pop("run_dirs"), plain.pop("flops_per_token")
    shape = {"loops": model["num_loops"], "layers": model["num_layers"]}
    return {"point": plain.pop("point"), **shape, **plain, "exit_code": point.exit_code}


def markdown(header: list[str], body: Sequence[list[str]]) -> str:
    """Format a table that reads well in a terminal and as Markdown."""
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    lines = [header, ["-" * width for width in widths], *body]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _mean(mean: Mean | None, spec: str = ".4f") -> str:
    if mean is None:
        return "-"
    error = "" if mean.error is None else f" ± {mean.error:.4f}"
    return f"{mean.mean:{spec}}{error}"


def _range(figure: Published | None) -> str:
    if figure is None:
        return "-"
    if figure.value is None:
        return f"{figure.low:+.2f} to {figure.high:+.2f}"
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"


def _phi(phi: Phi | None) -> str:
    if phi is None:
        return "-"
    interval = f" [{phi.interval[0]:.2f}, {phi.interval[1]:.2f}]" if phi.interval else ""
    return f"{phi.value:.2f}{interval}"
