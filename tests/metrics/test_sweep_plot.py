"""The plot of a sweep, with and without seeds, loops and controls."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopcoder.errors import InputError
from loopcoder.metrics.sweep_plot import mean_curve, plot_sweep
from loopcoder.metrics.sweep_rows import PointRow, SweptRun, point_rows, row_of
from tests.metrics.points import loop_sweep, swept_run
from tests.metrics.test_plots import assert_is_a_plot


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
    with pytest.raises(InputError, match="none of the 1 points"):
        plot_sweep(points, tmp_path / "sweep.png")
    assert not (tmp_path / "sweep.png").exists()


def test_a_curve_is_the_mean_where_all_runs_are(tmp_path: Path) -> None:
    runs = [swept_run(tmp_path / "a", [4.0, 3.0, 2.0]), swept_run(tmp_path / "b", [2.0, 2.0])]
    dirs = [run.run_dir for run in runs]
    assert mean_curve([*dirs, tmp_path / "absent"]) == ([100, 200], [3.0, 2.5])
    assert mean_curve([tmp_path / "absent"]) == ([], [])
