"""The table of a sweep, from the metrics of its runs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from loopcoder.metrics.sweep import Row, SweptRun, markdown, report_sweep, row_of
from loopcoder.metrics.writer import MetricsWriter


def run(run_dir: Path, *records: dict[str, float], exit_code: int | None = 0) -> SweptRun:
    with MetricsWriter(run_dir, resume_step=None) as writer:
        for record in records:
            writer.log(record)
    return SweptRun(f"seed={run_dir.name}", 2, run_dir, exit_code)


def test_a_row_has_the_last_losses_and_the_median_speed(tmp_path: Path, rng: random.Random) -> None:
    losses = [rng.uniform(1, 5) for _ in range(3)]
    speeds = [90.0, 110.0, 5.0]
    swept = run(
        tmp_path / "1",
        *({"step": i + 1, "loss": losses[i], "tokens_per_s": speeds[i]} for i in range(3)),
        {"step": 2, "val/loss": 9.0},
        {"step": 3, "val/loss": 2.5, "val/loss/code": 2.25, "val/bpb/code": 1.0},
        {"step": 3, "val/loss/code/loop0": 7.0},
    )
    assert row_of(swept) == Row(
        point="seed=1",
        loops=2,
        steps=3,
        loss=losses[-1],
        val={"val/loss": 2.5, "val/loss/code": 2.25},
        tokens_per_s=90.0,
        exit_code=0,
    )


def test_a_run_that_never_started_has_a_row(tmp_path: Path) -> None:
    swept = SweptRun("seed=1", 3, tmp_path / "absent", None)
    assert row_of(swept) == Row("seed=1", 3, 0, None, {}, None, None)


@pytest.mark.parametrize("plot", [True, False])
def test_files_of_a_report(tmp_path: Path, plot: bool) -> None:
    pytest.importorskip("matplotlib")
    good = run(tmp_path / "1", {"step": 1, "loss": 2.0, "tokens": 10, "val/loss": 1.5})
    bad = run(tmp_path / "2", {"step": 1, "loss": float("nan")}, exit_code=76)
    report_sweep([good, bad], tmp_path, plot=plot)
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert [(r["point"], r["exit_code"], r["val"]) for r in rows] == [
        ("seed=1", 0, {"val/loss": 1.5}),
        ("seed=2", 76, {}),
    ]
    table = (tmp_path / "sweep.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["seed=1", "seed=2"]
    assert (tmp_path / "sweep.png").exists() == plot


def test_without_an_evaluation_there_is_nothing_to_draw(tmp_path: Path) -> None:
    report_sweep([run(tmp_path / "1", {"step": 1, "loss": 2.0})], tmp_path, plot=True)
    assert not (tmp_path / "sweep.png").exists()


def test_the_table_shows_what_is_not_there() -> None:
    table = markdown(
        [Row("a", 1, 0, None, {}, None, None), Row("b", 2, 5, 1.5, {"val/loss": 2}, 9e4, 0)]
    )
    assert table.splitlines()[2].split("|")[4:8] == [
        " -          ",
        " -        ",
        " -        ",
        " -    ",
    ]
    assert "90,000" in table
