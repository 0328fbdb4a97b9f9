"""What a study of benchmarks/recipes.py is, and how its runs become a table."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loopcoder.config.compose import compose
from loopcoder.metrics.seeds import Mean, mean_of, paired_difference
from loopcoder.model.flops import train_flops_per_token

NEAR = 0.1
"""Nats above the lowest loss within which losses by rate are taken for a parabola."""
VOCABULARY = 16384
Record = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One cell of a study."""

    name: str
    overrides: tuple[str, ...]
    script: tuple[str, ...] | None = None
    """Another script of this folder and its options, which writes the result to --out; None:
    `loopcoder train`."""


@dataclass(frozen=True)
class Study:
    """Runs that differ in what a question asks for and in nothing else."""

    name: str
    shared: tuple[str, ...]
    points: tuple[Point, ...]
    seeds: tuple[int, ...]
    table: Callable[[Sequence[Record]], str]
    runs_per_gpu: int = 6
    """At the same time: small models do not fill a GPU."""

    def runs(self) -> Iterator[tuple[int, Point]]:
        """Yield (seed, point), so that one seed is complete before the next begins."""
        yield from itertools.product(self.seeds, self.points)

    def cost(self, point: Point) -> float:
        """Return the floating-point operations of a run."""
        config = compose([*self.shared, *point.overrides])
        layers = config.model.num_layers * config.model.layer_multiple
        model = replace(config.model, num_layers=layers)
        length = config.data.seq_length
        tokens = config.train.max_steps * config.train.global_batch_size * length
        return train_flops_per_token(model, VOCABULARY, length)[0] * tokens


def by_point(records: Sequence[Record]) -> dict[str, dict[int, float]]:
    """Return the validation losses of each point by seed."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        found.setdefault(record["point"], {})[record["seed"]] = record["val"]["val/loss"]
    return found


def rows(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def losses_table(records: Sequence[Record]) -> str:
    """One row for each point: the losses of its seeds and their mean."""
    body = []
    for name, losses in by_point(records).items():
        each = " ".join(f"{x:.4f}" for x in losses.values())
        body.append([name, f"{statistics.fmean(losses.values()):.4f}", each])
    return rows(["point", "mean", "by seed"], body)


def loops_table(records: Sequence[Record]) -> str:
    """One row for each point: the mean over its seeds, and by how much it differs from the first
    point and from the dense one of as many FLOPs, paired by seed; with standard errors."""
    losses = by_point(records)
    first, dense = losses.get("loops_1", {}), losses.get("dense_2x", {})
    body = []
    for name, by_seed in losses.items():
        cells = [
            "-" if to is by_seed else _mean(paired_difference(by_seed, to), "+.4f")
            for to in (first, dense)
        ]
        seeds = " ".join(f"{by_seed[seed]:.4f}" for seed in sorted(by_seed))
        body.append([name, _mean(mean_of(list(by_seed.values()))), seeds, *cells])
    return rows(["point", "mean", "by seed", "less loops_1", "less dense_2x"], body)


def _mean(mean: Mean | None, spec: str = ".4f") -> str:
    if mean is None:
        return "-"
    return f"{mean.mean:{spec}}" + ("" if mean.error is None else f" ± {mean.error:.4f}")


def rates_table(records: Sequence[Record]) -> str:
    """The best rate of each model, by a parabola in log2 of the rate through the points near the
    lowest, and how far above it the parabola is at the recipe's rate."""
    curves: dict[str, list[tuple[float, float]]] = {}
    recipe: dict[str, float] = {}
    for record in records:
        model, rate = record["point"].split(" lr ")
        curves.setdefault(model, []).append((float(rate), record["val"]["val/loss"]))
        others = [o for o in record["overrides"] if not o.startswith("optim.lr=")]
        recipe.setdefault(model, compose(others).optim.lr)
    body = []
    for model, curve in curves.items():
        each = " ".join(f"{loss:.4f}" for _, loss in sorted(curve))
        best, bend = optimum(curve) or (math.nan, math.nan)
        cost = bend * math.log2(recipe[model] / best) ** 2
        numbers = [f"{best:.2e}", f"{recipe[model]:.2e}", f"{cost:.4f}"]
        body.append([model, each, *("-" if x == "nan" else x for x in numbers)])
    return rows(["model", "loss by rate", "best rate", "the recipe's", "costs"], body)


def optimum(curve: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Return the rate at the lowest point of a parabola in log2 of the rate, and its leading
    coefficient; None where it has no such point within the rates tried.

    It is fitted by least squares to the lowest loss, its neighbours and all within NEAR of it: a
    loss that diverges would bend it.
    """
    x, y = np.array(sorted(curve)).T
    best = int(y.argmin())
    near = y <= y[best] + NEAR
    near[max(0, best - 1) : best + 2] = True
    if near.sum() < 3:
        return None
    x = np.log2(x[near])
    a, b, _ = np.polyfit(x, y[near], 2)
    lowest = -b / (2 * a) if a > 0 else None
    if lowest is None or not x.min() <= lowest <= x.max():
        return None
    return float(2**lowest), float(a)


def spikes_table(records: Sequence[Record]) -> str:
    """The furthest that a loss of the first 200 steps lies above the mean of the ten before: as it
    is, and less the median of what the other runs of the study rise there: they have the same
    batches, so that is the text's part."""
    rises = [_rises(record["first_losses"]) for record in records]
    body = []
    for i, record in enumerate(records):
        others = [rise for rise in rises[:i] + rises[i + 1 :] if len(rise) >= len(rises[i])]
        own = [
            rise - max(0.0, statistics.median(other[step] for other in others))
            for step, rise in enumerate(rises[i] if others else ())
        ]
        losses = record["first_losses"]
        norms = " ".join(f"{x:.1f}" for x in record["first_grad_norms"][:3])
        last = losses[90:100] or losses[-10:]
        figures = [f"{max(rises[i]):+.3f}", f"{max(own):+.3f}" if own else "-"]
        body.append([record["point"], *figures, norms, f"{statistics.fmean(last):.3f}"])
    return rows(
        [
            "model",
            "highest above",
            "beyond the text's",
            "first gradient norms",
            "steps 91 to 100 (or last ten)",
        ],
        body,
    )


def _rises(losses: Sequence[float]) -> list[float]:
    """Return how far each loss but the first lies above the mean of the ten before it."""
    return [
        loss - statistics.fmean(losses[max(0, i - 10) : i])
        for i, loss in enumerate(losses)
        if i > 0
    ]
