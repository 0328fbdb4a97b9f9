"""The plots are drawn from metrics.jsonl, with and without evaluations, loops and NaN."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loopcoder.errors import InputError
from loopcoder.metrics import plots

matplotlib_image = pytest.importorskip("matplotlib.image")


def make_run(run_dir: Path, *, num_loops: int = 2, steps: int = 60, evaluate: bool = True) -> Path:
    """Write the metrics of a run; evaluations at every tenth step have a line of their own."""
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(f"model: {{name: tiny, num_loops: {num_loops}}}\n")
    with (run_dir / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            loss = 2 + 5 * math.exp(-step / 10)
            record: dict[str, Any] = {"step": step, "tokens": step * 4096, "loss": loss}
            record |= {"tokens_per_s": 1e5, "mfu_causal": 0.4, "mfu_full": 0.5}
            record |= {"data_wait_s": 0.001, "step_time_s": 0.1}
            if step == 7:
                record["loss"] = "nan"
            file.write(json.dumps(record) + "\n")
            if evaluate and step % 10 == 0:
                record = {"step": step, "val/loss": loss, "val/bpb/code": loss / 3}
                record |= {f"val/loss/{d}": loss + i for i, d in enumerate(("code", "text"))}
                record |= {f"val/loss/loop{r}": loss + 1 - r for r in range(num_loops)}
                file.write(json.dumps(record) + "\n")
    return run_dir


def assert_is_a_plot(path: Path, colors: Sequence[str]) -> None:
    """The PNG has a white background and at least some pixels of every curve's color."""
    pixels = matplotlib_image.imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 500
    assert (pixels > 0.99).all(axis=-1).mean() > 0.5
    for color in colors:
        wanted = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (abs(pixels - wanted) < 0.02).all(axis=-1).sum() > 100, f"no {color} in {path}"


def test_plot_run(tmp_path: Path) -> None:
    files = plots.plot_run(make_run(tmp_path / "run"))
    assert [str(f.relative_to(tmp_path)) for f in files] == [
        "run/plots/loss.png",
        "run/plots/loops.png",
        "run/plots/throughput.png",
    ]
    assert_is_a_plot(files[0], ["#0072B2", "#D55E00", "#009E73", "#333333"])
    assert_is_a_plot(files[1], ["#0072B2", "#D55E00"])
    assert_is_a_plot(files[2], ["#0072B2", "#D55E00", "#009E73"])
    assert sorted(p.name for p in (tmp_path / "run" / "plots").iterdir()) == sorted(
        f.name for f in files
    )


def test_plot_run_of_one_loop_has_no_loops_png(tmp_path: Path) -> None:
    files = plots.plot_run(make_run(tmp_path / "run", num_loops=1))
    assert [f.name for f in files] == ["loss.png", "throughput.png"]


def test_plot_run_without_evaluation_and_of_one_step(tmp_path: Path) -> None:
    files = plots.plot_run(make_run(tmp_path / "run", steps=1, evaluate=False))
    assert [f.name for f in files] == ["loss.png", "throughput.png"]


def test_plot_run_needs_a_record(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        plots.plot_run(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(InputError, match="has no record"):
        plots.plot_run(tmp_path)


def test_missing_matplotlib_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        plots.plot_run(tmp_path)


def test_smoothing_is_a_centred_mean_without_nan() -> None:
    line = [float(i) for i in range(200)]
    assert plots._smooth(line)[:190] == pytest.approx(line[:190])  # no lag on a slope
    line[50] = math.nan
    assert all(math.isfinite(v) for v in plots._smooth(line))
    assert plots._smooth([]) == []
