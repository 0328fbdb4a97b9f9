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
RECORDS = REPOSITORY / "benchmarks" / "results" / "recipes" / "dial_20m.jsonl"
OUT = Path(__file__).with_suffix(".png")
NAMES = {
    "loops_2": "4 layers, two loops",
    "loops_1": "4 layers, one loop",
    "dense_2x": "8 layers, one loop",
}
SMOOTHED = 5
"""Of the means of ten steps that are on record, the mean of so many is drawn."""


def main() -> None:
    records = [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]
    print(draw(OUT, lambda figure: _curves(figure, records)))


def _curves(figure: Figure, records: list[dict[str, Any]]) -> None:
    ax = figure.subplots()
    for color, (point, name) in zip(COLORS, NAMES.items(), strict=False):
        runs = [record for record in records if record["point"] == point]
        mean = statistics.fmean(run["val"]["val/loss"] for run in runs)
        label = f"{name}: {mean:.3f} in validation"
        for run in runs:
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
