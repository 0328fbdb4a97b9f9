"""The tables and files of a sweep, from the metrics of its runs."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from loopcoder.metrics.sweep import report_sweep, run_table
from loopcoder.metrics.sweep_rows import Row, SweptRun, row_of
from loopcoder.metrics.writer import MetricsWriter
from tests.configs import small_config
from tests.metrics.points import loop_sweep

CONFIG = replace(small_config(), seed=7)
FLOPS = 3e9


def run(run_dir: Path, *records: dict[str, float], exit_code: int | None = 0) -> SweptRun:
    with MetricsWriter(run_dir, resume_step=None) as writer:
        for record in records:
            writer.log(record)
    label = f"lr={run_dir.name}"
    return SweptRun(label, label, CONFIG, run_dir, exit_code, FLOPS)


def cells(table: str) -> list[list[str]]:
    """Return the cells of every line of a table in Markdown."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_row_has_the_last_losses_and_the_median_speed(tmp_path: Path, rng: random.Random) -> None:
    losses = [rng.uniform(1, 5) for _ in range(3)]
    speeds = [90.0, 110.0, 5.0]
    swept = run(
        tmp_path / "1",
        *({"step": i + 1, "loss": losses[i], "tokens_per_s": speeds[i]} for i in range(3)),
        {"step": 2, "val/loss": 9.0},
        {"step": 3, "val/loss": 2.5, "val/loss/code": 2.25, "val/bpb/code": 1.0},
        {"step": 3, "val/loss/code/loop0": 7.0, "val/loss/loop0": 7.0},
    )
    assert row_of(swept) == Row(
        run="lr=1",
        seed=7,
        loops=2,
        steps=3,
        loss=losses[-1],
        val={"val/loss": 2.5, "val/loss/code": 2.25},
        tokens_per_s=90.0,
        exit_code=0,
    )


def test_a_run_that_never_started_has_a_row(tmp_path: Path) -> None:
    swept = SweptRun("lr=1", "lr=1", CONFIG, tmp_path / "absent", None, FLOPS)
    assert row_of(swept) == Row("lr=1", 7, 2, 0, None, {}, None, None)


@pytest.mark.parametrize("plot", [True, False])
def test_files_of_a_sweep_without_seeds(tmp_path: Path, plot: bool) -> None:
    pytest.importorskip("matplotlib")
    good = run(tmp_path / "1", {"step": 1, "loss": 2.0, "tokens": 10, "val/loss": 1.5})
    bad = run(tmp_path / "2", {"step": 1, "loss": float("nan")}, exit_code=76)
    report_sweep([good, bad], tmp_path, plot=plot)
    written = json.loads((tmp_path / "sweep.json").read_text())
    assert [(r["run"], r["exit_code"], r["val"]) for r in written["runs"]] == [
        ("lr=1", 0, {"val/loss": 1.5}),
        ("lr=2", 76, {}),
    ]
    assert written["loops"] is None
    table = cells((tmp_path / "sweep.md").read_text())
    assert [line[0] for line in table[2:]] == ["lr=1", "lr=2"]
    assert (tmp_path / "sweep.png").exists() == plot


def test_files_of_a_sweep_with_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = loop_sweep(tmp_path, loops_1=3.3, loops_2=3.25, loops_3=3.24, dense_2x=3.2)
    runs[5] = replace(runs[5], exit_code=76)
    report_sweep(runs, tmp_path, plot=False)
    shown = capsys.readouterr().out
    text = (tmp_path / "sweep.md").read_text()
    assert text.startswith(shown.rstrip("\n"))
    table = cells(text)
    assert table[0] == [
        *["point", "loops", "layers", "seeds", "val/loss", "val/loss/code", "val/loss/text"],
        *["difference", "FLOPs", "device-hours", "tokens/s", "exit"],
    ]
    flops = 200 * runs[0].flops_per_token
    one, two = ["3.3150 ± 0.0050", "3.3650 ± 0.0050", "3.2650 ± 0.0050"], "3.2650 ± 0.0050"
    assert table[2] == [
        "variant=loops_1",
        "1",
        "2",
        "2",
        *one,
        "-",
        f"{flops:.3g}",
        "-",
        "50",
        "0",
    ]
    assert [table[3][i] for i in (0, 3, 4, 7, 11)] == [
        *["variant=loops_2", "2", two, "-0.0500 ± 0.0000", "76"],
    ]
    assert table[6][:3] == ["val/loss", "less variant=loops_1", "published"]
    assert table[8] == [
        *["variant=loops_2", "-0.0500 ± 0.0000", "-0.06 to -0.03"],
        *["+0.0500 ± 0.0000", "+0.03 to +0.06", "0.50 [0.50, 0.50]", "0.46 [0.41, 0.53]"],
    ]
    assert table[10][0] == "R = 2, 3" and table[10][5].startswith("0.41 [")
    assert "arXiv 2604.21106" in shown and "arXiv 2604.12946" in shown
    assert "95% by bootstrap" in shown and "seed=2" not in shown
    assert [line[0] for line in table[13:15]] == [
        "seed=1 variant=loops_1",
        "seed=1 variant=loops_2",
    ]

    written = json.loads((tmp_path / "sweep.json").read_text())
    assert len(written["runs"]) == 8 and len(written["points"]) == 4
    assert written["points"][1]["difference"]["val/loss"]["mean"] == pytest.approx(-0.05)
    assert written["points"][1]["val"]["val/loss"] == pytest.approx({"1": 3.26, "2": 3.27})
    assert written["loops"]["fit"]["loops"] == [2, 3]


def test_one_seed_says_that_it_has_no_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = loop_sweep(tmp_path, seeds=(1,), loops_1=3.3, loops_2=3.25, dense_2x=3.2)
    report_sweep(runs, tmp_path, plot=False)
    shown = capsys.readouterr().out
    table = cells(shown)
    assert table[0][0] == "run"  # one row per run, as without loops
    assert table[-1] == [
        *["variant=loops_2", "-0.0500", "-0.06 to -0.03", "+0.0500", "+0.03 to +0.06"],
        *["0.50", "0.46 [0.41, 0.53]"],
    ]
    assert "one seed, so phi has no interval" in shown


def test_depth_that_does_not_pay_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_sweep(
        loop_sweep(tmp_path, loops_1=3.3, loops_2=3.25, dense_2x=3.4), tmp_path, plot=False
    )
    shown = capsys.readouterr().out
    assert "phi is not defined: variant=dense_2x has no lower loss than variant=loops_1" in shown


def test_without_an_evaluation_there_is_nothing_to_draw(tmp_path: Path) -> None:
    report_sweep([run(tmp_path / "1", {"step": 1, "loss": 2.0})], tmp_path, plot=True)
    assert not (tmp_path / "sweep.png").exists()


def test_the_table_shows_what_is_not_there() -> None:
    table = run_table(
        [Row("a", 1, 1, 0, None, {}, None, None), Row("b", 1, 2, 5, 1.5, {"val/loss": 2}, 9e4, 0)]
    )
    assert cells(table)[2] == ["a", "1", "0", *"------"]
    assert "90,000" in table


def test_hours_are_those_of_all_devices(tmp_path: Path, rng: random.Random) -> None:
    """A line covers the steps since the last one."""
    devices, every = rng.randint(1, 64), rng.randint(1, 9)
    times = [rng.uniform(0.1, 9) for _ in range(3)]
    swept = run(
        tmp_path / "1",
        *(
            {"step": every * n, "tokens": 10 * n, "loss": 1.0, "step_time_s": time}
            | {"tokens_per_s": 7.0 * devices, "tokens_per_s_per_rank": 7.0}
            for n, time in enumerate(times, 1)
        ),
    )
    row = row_of(swept)
    assert row.device_hours == pytest.approx(sum(times) * every * devices / 3600)
    assert row.flops == 30 * FLOPS


@pytest.mark.parametrize("older", [(), (1,), (0, 2), (0, 1, 2)])
def test_runs_with_the_old_validation_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], older: tuple[int, ...]
) -> None:
    runs = [
        run(
            tmp_path / str(i),
            {"step": 1, "loss": 2.0, "tokens": 10, "val/loss": 1.5}
            | ({} if i in older else {"val/weighting": "mixture"}),
        )
        for i in range(3)
    ]
    report_sweep(runs, tmp_path, plot=False)
    printed = capsys.readouterr().out
    named = f"val/loss of {', '.join(f'lr={i}' for i in older)} weighs domains"
    assert (named in printed) == (len(older) in (1, 2))
    assert ("only val/loss/<domain> compares" in (tmp_path / "sweep.md").read_text()) == (
        len(older) in (1, 2)
    )


def test_loops_are_compared_at_equal_tokens_only(
    tmp_path: Path, rng: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with sweep.match=flops, or where train.max_steps is swept."""
    runs = loop_sweep(tmp_path, loops_1=3.0, loops_2=2.5, dense_2x=2.25)
    report_sweep(runs, tmp_path, plot=False)
    assert "equal weights and tokens" in capsys.readouterr().out
    chosen = rng.randrange(len(runs))
    config = runs[chosen].config
    fewer = replace(config, train=replace(config.train, max_steps=config.train.max_steps - 1))
    runs[chosen] = replace(runs[chosen], config=fewer)
    report_sweep(runs, tmp_path, plot=False, notes=["All have the same FLOPs."])
    printed = capsys.readouterr().out
    assert "equal weights and tokens" not in printed and "phi is not" not in printed
    assert "do not have equally many tokens" in printed and "the same FLOPs" in printed
    assert json.loads((tmp_path / "sweep.json").read_text())["loops"] is None
