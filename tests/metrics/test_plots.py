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
Figure = pytest.importorskip("matplotlib.figure").Figure


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


Records = list[dict[str, Any]]


def evaluations(steps: range, **fields: Any) -> Records:
    return [
        {"step": s, "loss": 9 - s / 20, "val/loss": 9.5 - s / 20, "val/loss/code": 9 - s / 20}
        | {"val/loss/text": 10 - s / 20, "val/loss/loop0": 10.5 - s / 20, "val/loss/loop1": 9.5}
        | fields
        for s in steps
    ]


def curves(records: Records, *, by_loop: bool = False) -> tuple[dict[str, Any], Any]:
    """Return the lines of a figure by their labels, and its axes."""
    fig = Figure()
    if by_loop:
        plots._by_loop(fig, records, "val/loss", "title", "loss")
    else:
        plots._loss(fig, records, "title")
    (ax, *_) = fig.axes
    return {line.get_label(): line for line in ax.lines}, ax


NEW = {"val/weighting": "mixture", "val/unigram_entropy": 6.5}
RESUMED = evaluations(range(10, 50, 10)) + evaluations(range(50, 100, 10), **NEW)


def test_the_unigram_entropy_is_a_line_from_the_first_step() -> None:
    lines, ax = curves([{"step": 1, "loss": 9.0}, *evaluations(range(10, 50, 10), **NEW)])
    line = lines["unigram entropy: 6.500"]
    assert set(line.get_ydata()) == {6.5}
    assert (line.get_xdata()[0], line.get_xdata()[-1]) == (1, 40)
    low, high = ax.get_ylim()
    assert low < 6.5 < high


def test_the_unigram_entropy_of_stages_has_steps() -> None:
    records = evaluations(range(10, 50, 10), **NEW)
    records += evaluations(range(50, 100, 10), **NEW | {"val/unigram_entropy": 6.25})
    line = curves(records)[0]["unigram entropy: 6.250"]
    assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == {
        step: 6.5 if step < 50 else 6.25 for step in range(10, 100, 10)
    }


def test_a_far_unigram_entropy_does_not_flatten_the_curves() -> None:
    lines, ax = curves(evaluations(range(10, 50, 10), **NEW | {"val/unigram_entropy": 1e3}))
    assert "unigram entropy: 1000.000" in lines
    assert ax.get_ylim()[1] < 20


def test_the_plot_names_the_old_validation_where_it_changes() -> None:
    """A run that was begun before validation was weighted by the mixture, and continued since."""
    lines, _ = curves(RESUMED)
    older = lines["validation, weighted by held-out tokens: 7.500"]
    newer = lines["validation: 5.000"]
    assert list(older.get_xdata()) == [10, 20, 30, 40]
    assert list(newer.get_xdata()) == [50, 60, 70, 80, 90]
    assert 40 < lines["from here on validation is weighted by the mixture"].get_xdata()[0] < 50
    # the domains' own losses mean what they meant
    assert list(lines["validation, code: 4.500"].get_xdata()) == list(range(10, 100, 10))


def test_loops_are_marked_where_the_validation_changes() -> None:
    lines, ax = curves(RESUMED, by_loop=True)
    assert 40 < lines["from here on validation is weighted by the mixture"].get_xdata()[0] < 50
    assert ax.get_ylabel() == "loss"


@pytest.mark.parametrize("by_loop", [False, True])
def test_an_old_run_is_drawn_as_what_it_is(by_loop: bool) -> None:
    lines, ax = curves(evaluations(range(10, 50, 10)), by_loop=by_loop)
    assert not [label for label in lines if "from here on" in label or "unigram" in label]
    named = ax.get_ylabel() if by_loop else " ".join(lines)
    assert "weighted by held-out tokens" in named


@pytest.mark.parametrize("by_loop", [False, True])
def test_a_new_run_says_nothing_of_it(by_loop: bool) -> None:
    lines, ax = curves(evaluations(range(10, 50, 10), **NEW), by_loop=by_loop)
    assert "weighted" not in " ".join([*lines, ax.get_ylabel()])


def test_further_lengths_are_no_domains(tmp_path: Path) -> None:
    records = evaluations(range(10, 50, 10), **NEW, **{"val/loss/len32": 5.0})
    assert plots._domains(records) == ["code", "text"]
    assert not [label for label in curves(records)[0] if "len32" in label]


def test_further_lengths_are_drawn_and_named(tmp_path: Path) -> None:
    lengths = {"val/loss/len1024": 5.5, "val/loss/len32": 5.0}
    records = evaluations(range(10, 50, 10), **NEW, **lengths)
    lines, ax = curves(records)
    assert {"validation, 32 tokens: 5.000", "validation, 1024 tokens: 5.500"} <= lines.keys()
    colors = [line.get_color() for line in lines.values()]
    assert len(set(colors)) == len(colors) - 1  # the entropy has the ink of the validation loss
    low, high = ax.get_ylim()
    assert low < 5 < high


def test_the_loops_at_a_further_length_have_a_figure(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        loops = {"val/loss/len64": 2.5, "val/loss/len64/loop0": 3.0, "val/loss/len64/loop1": 2.5}
        file.write(json.dumps({"step": 60, **loops}) + "\n")
    names = [file.name for file in plots.plot_run(run)]
    assert names == ["loss.png", "loops.png", "loops_len64.png", "throughput.png"]
