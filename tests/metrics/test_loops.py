"""Which points of a sweep are compared with which, and what comes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from loopcoder.metrics.loops import Loops, compare_loops, differs_in_loops_only
from loopcoder.metrics.published import EQUAL_FLOPS, EQUAL_WEIGHTS
from loopcoder.metrics.seeds import Mean
from loopcoder.metrics.sweep_rows import SweptRun, point_rows, row_of
from tests.configs import small_model
from tests.metrics.points import loop_sweep, swept_run

LAST = {"loops_1": 3.3, "loops_2": 3.25, "loops_3": 3.24, "no_shift": 3.24, "dense_2x": 3.2}


def compared(runs: list[SweptRun]) -> Loops | None:
    return compare_loops(point_rows(runs, [row_of(run) for run in runs]))


def exactly(mean: float, seeds: int = 2) -> Mean:
    """A mean of seeds that agree."""
    return Mean(pytest.approx(mean), pytest.approx(0, abs=1e-12), seeds)


def test_every_looped_point_has_its_row(tmp_path: Path) -> None:
    loops = compared(loop_sweep(tmp_path, **LAST))
    assert loops is not None
    assert (loops.one, loops.dense) == ("variant=loops_1", "variant=dense_2x")
    two, three, no_shift = loops.rows
    assert [row.point for row in loops.rows] == [
        "variant=loops_2",
        "variant=loops_3",
        "variant=no_shift",
    ]
    assert (two.equal_weights, two.equal_flops) == (exactly(-0.05), exactly(0.05))
    assert two.published_equal_weights == EQUAL_WEIGHTS[2]
    assert two.published_equal_flops == EQUAL_FLOPS[2]
    assert (three.equal_flops, three.published_equal_weights) == (None, None)
    assert no_shift.phi is not None and no_shift.phi.value == pytest.approx(0.6)
    # The control is not in the fit: gains of 0.05 and 0.06 at log2 of 2 and 3.
    log3 = 1.584962500721156
    assert loops.fit is not None and loops.fit.loops == (2, 3)
    assert loops.fit.value == pytest.approx((0.5 + 0.6 * log3) / (1 + log3**2))


def test_without_the_dense_model_there_is_no_phi(tmp_path: Path) -> None:
    loops = compared(loop_sweep(tmp_path, loops_1=3.3, loops_2=3.25))
    assert loops is not None and (loops.dense, loops.fit) == (None, None)
    assert (loops.rows[0].equal_flops, loops.rows[0].phi) == (None, None)
    assert loops.rows[0].equal_weights == exactly(-0.05)


def test_a_sweep_of_something_else_has_no_comparison(tmp_path: Path) -> None:
    assert compared([]) is None
    assert compared(loop_sweep(tmp_path / "a", loops_2=3.3, loops_1=3.2)) is None
    assert compared(loop_sweep(tmp_path / "b", loops_1=3.3, dense_2x=3.2)) is None


def test_of_several_candidates_none_is_taken(tmp_path: Path) -> None:
    """Loops and a rate are swept: no dense model is the counterpart of both rates."""
    shapes = {"one": {"num_loops": 1}, "two": {}, "dense": {"num_loops": 1, "num_layers": 4}}
    runs = [
        swept_run(tmp_path / f"{name}{rate}", [3.0], point=f"lr={rate} {name}", **model)
        for rate in (1, 2)
        for name, model in shapes.items()
    ]
    loops = compared(runs)
    assert loops is not None and (loops.dense, loops.fit) == (None, None)
    assert [row.point for row in loops.rows] == ["lr=1 two", "lr=2 two"]


def test_a_run_that_failed_leaves_its_seed_out(tmp_path: Path) -> None:
    runs = loop_sweep(tmp_path, seeds=(1, 2, 3), loops_1=3.3, loops_2=3.25)
    runs[3] = replace(runs[3], run_dir=tmp_path / "nothing", exit_code=76)
    loops = compared(runs)
    assert loops is not None and loops.rows[0].equal_weights == exactly(-0.05, seeds=2)


def test_what_computes_the_loops_is_no_difference() -> None:
    one = small_model(num_loops=1, kernels="stock")
    assert differs_in_loops_only(small_model(num_loops=3, kernels="cuda"), one)
    assert not differs_in_loops_only(small_model(num_loops=3, window=3), one)
