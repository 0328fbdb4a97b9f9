"""The plot of a sweep, with and without seeds, loops and controls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loopcoder.errors import InputError
from loopcoder.metrics.sweep_plot import (
    _costs,
    _curves,
    mean_curve,
    plot_costs,
    plot_sweep,
    records_of,
)
from loopcoder.metrics.sweep_rows import PointRow, SweptRun, point_rows, row_of
from tests.metrics.points import loop_sweep, swept_run
from tests.metrics.test_plots import Figure, assert_is_a_plot


def points_of(runs: list[SweptRun]) -> list[PointRow]:
    return point_rows(runs, [row_of(run) for run in runs])


def test_by_loops_with_seeds_and_controls(tmp_path: Path) -> None:
    runs = loop_sweep(tmp_path, loops_1=3.3, loops_2=3.25, no_shift=3.24, dense_2x=3.2)
    runs.append(swept_run(tmp_path / "nothing", [], point="failed", num_loops=3))
    out = plot_sweep(points_of(runs), tmp_path / "sweep" / "loops.png")
    assert out == tmp_path / "sweep" / "loops.png"
    assert_is_a_plot(out, ["#0072B2", "#D55E00", "#009E73", "#CC79A7"])


def test_of_another_dial(tmp_path: Path) -> None:
    runs = [swept_run(tmp_path / str(i), [4.0, 3.0 + i], point=f"lr={i}") for i in range(2)]
    assert_is_a_plot(plot_sweep(points_of(runs), tmp_path / "lr.png"), ["#D55E00"])


def test_an_evaluation_is_needed(tmp_path: Path) -> None:
    points = points_of([swept_run(tmp_path / "a", [])])
    with pytest.raises(InputError, match="of 1 point of the sweep none has"):
        plot_sweep(points, tmp_path / "sweep.png")
    assert not (tmp_path / "sweep.png").exists()


def test_a_curve_is_the_mean_where_all_runs_are(tmp_path: Path) -> None:
    runs = [swept_run(tmp_path / "a", [4.0, 3.0, 2.0]), swept_run(tmp_path / "b", [2.0, 2.0])]
    records = [records_of(run.run_dir) for run in runs]
    nothing = records_of(tmp_path / "absent")
    assert mean_curve([*records, nothing]) == ([100, 200], [3.0, 2.5])
    assert mean_curve([nothing]) == ([], [])


def test_further_lengths_are_curves_of_their_own(tmp_path: Path) -> None:
    runs = [swept_run(tmp_path / str(i), [4.0, 3.0 + i], point=f"lr={i}") for i in range(2)]
    for run in runs:
        file = run.run_dir / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        longer = [line | {"val/loss/len64": line["val/loss"] - 1} for line in lines]
        file.write_text("".join(json.dumps(line) + "\n" for line in longer))
    axes = Figure().subplots()
    _curves(axes, points_of(runs))
    assert [line.get_label() for line in axes.lines] == [
        "lr=0: 3.000",
        "lr=0, 64 tokens: 2.000",
        "lr=1: 4.000",
        "lr=1, 64 tokens: 3.000",
    ]


def test_by_what_the_points_cost(tmp_path: Path) -> None:
    runs = [swept_run(tmp_path / str(i), [4.0, 3.0 + i], point=f"lr={i}") for i in range(2)]
    file = runs[0].run_dir / "metrics.jsonl"
    lines = [json.loads(line) | {"step_time_s": 3600.0} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs.append(swept_run(tmp_path / "nothing", [], point="failed"))
    figure = Figure()
    _costs(figure, points_of(runs))
    by_flops, by_hours = figure.axes
    per_token = runs[0].flops_per_token
    assert [list(line.get_xdata()) for line in by_flops.lines] == [
        [100 * per_token, 200 * per_token]
    ] * 2
    assert [list(line.get_xdata()) for line in by_hours.lines] == [[1.0, 2.0], []]
    assert_is_a_plot(plot_costs(points_of(runs), tmp_path / "cost.png"), ["#D55E00"])
