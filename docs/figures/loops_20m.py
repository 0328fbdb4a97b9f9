"""Draw loops_20m.png, the README's figure of what a second loop brings, from the runs on record in
benchmarks/results/recipes: `python docs/figures/loops_20m.py`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopcoder.metrics.drawing import COLORS, draw, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDS = REPOSITORY / "benchmarks" / "results" / "recipes"
STUDIES = {"loops_2": "loops_20m", "loops_1": "loops_first", "dense_2x": "loops_first"}
"""By point; one loop has neither b nor a gate, in which the two studies differ."""
OUT = Path(__file__).with_suffix(".png")
NAMES = {
    "loops_2": "4 layers, two loops",
    "loops_1": "4 layers, one loop",
    "dense_2x": "8 layers, one loop",
}
SMOOTHED = 5
"""Of the means of ten steps that are on record, the mean of so many is drawn."""


def main() -> None:
    runs = {point: _records(study, point) for point, study in STUDIES.items()}
    print(draw(OUT, lambda figure: _curves(figure, runs)))


def _records(study: str, point: str) -> list[dict[str, Any]]:
    lines = (RECORDS / f"{study}.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["point"] == point]


def _curves(figure: Figure, runs: dict[str, list[dict[str, Any]]]) -> None:
    ax = figure.subplots()
    for color, (point, name) in zip(COLORS, NAMES.items(), strict=False):
        found = [run["val"]["val/loss"] for run in runs[point]]
        label = f"{name}: {statistics.fmean(found):.3f} in validation"
        for run in runs[point]:
            losses = run["losses"]
            smooth = [
                statistics.fmean(losses[i - SMOOTHED : i]) for i in range(SMOOTHED, len(losses) + 1)
            ]
            per_point = run["tokens"] / len(losses) / 1e6
            tokens = [(i - SMOOTHED / 2) * per_point for i in range(SMOOTHED, len(losses) + 1)]
            ax.plot(tokens, smooth, color=color, linewidth=1.3, label=label)
            label = ""
    ax.set_ylim(top=6.0)
    ax.legend(frameon=False)
    title = "20M parameters outside embedding and head, one line for each seed"
    style(ax, title, "million tokens", "training loss (nats / token)")


if __name__ == "__main__":
    main()
