"""What benchmarks/recipes.py trains, in this order, and how each study becomes a table."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loopcoder.config.compose import compose
from loopcoder.model.flops import train_flops_per_token

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
        length = config.data.seq_length
        tokens = config.train.max_steps * config.train.global_batch_size * length
        return train_flops_per_token(config.model, VOCABULARY, length)[0] * tokens


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


# The first test: scale of the embedding x (a, b) x residual, at 20M.

_SCALES = {"0.02": 0.02, "0.075": 0.075, "1": 1.0}
_MIX = {"released": (0.707, 0.053), "one": (1.0, 1.0), "parcae": (0.805, 0.447)}
_RESIDUAL = {"1": 1.0, "1/R": 0.5}


def _first_points() -> Iterator[Point]:
    for scale, std in _SCALES.items():
        embedding = f"model.embedding_init_std={std}"
        yield Point(f"R=1 E={scale}", ("model.num_loops=1", embedding))
        for (mix, (a, b)), (name, factor) in itertools.product(_MIX.items(), _RESIDUAL.items()):
            yield Point(
                f"R=2 E={scale} {mix} residual {name}",
                (
                    "model.num_loops=2",
                    embedding,
                    f"model.emb_scale={a}",
                    f"model.hidden_scale={b}",
                    f"model.residual_scale={factor}",
                ),
            )


_SMALL = (
    "model=plt_20m",
    "data.seq_length=2048",
    "train.global_batch_size=8",
    "train.micro_batch_size=8",
    "eval.sequences_per_domain=128",
)
FIRST = Study(
    "first_test",
    (
        *_SMALL,
        "data.isolate_documents=false",
        "train.max_steps=750",
        "optim.lr=1e-3",
        "optim.min_lr=1e-4",
        "model.init_std=0.028",  # (2.5 d)^-1/2
        "model.head_init_std=0.02",
        "optim.base_hidden_size=512",
    ),
    tuple(_first_points()),
    (1, 2),
    losses_table,
)


# One field at a time, around the best cell of the first test.

_BASE = (
    "model=plt_20m",
    "data.seq_length=2048",
    "data.isolate_documents=false",
    "train.global_batch_size=4",
    "train.micro_batch_size=4",
    "train.max_steps=2000",
    "eval.sequences_per_domain=128",
    "model.embedding_init_std=1",
    "model.emb_scale=0.805",
    "model.hidden_scale=0.447",
    "model.init_std=0.028",
    "model.head_init_std=0.02",
    "optim.base_hidden_size=512",
    "optim.lr=1e-3",
    "optim.min_lr=1e-4",
    "optim.embedding_lr_scale=10",
)
_CHANGES = {
    "base": (),
    "lr 2e-3": ("optim.lr=2e-3", "optim.min_lr=2e-4"),
    "embedding rate x20": ("optim.embedding_lr_scale=20",),
    "embedding rate x40": ("optim.embedding_lr_scale=40",),
    "lr 5e-4, embedding rate x20": (
        "optim.lr=5e-4",
        "optim.min_lr=5e-5",
        "optim.embedding_lr_scale=20",
    ),
    "matrices 0.044": ("model.init_std=0.044",),
    "outputs zero": ("model.output_init=zero",),
    "head zero": ("model.head_init_std=0",),
    "embedding 0.3, rate x3": ("model.embedding_init_std=0.3", "optim.embedding_lr_scale=3"),
}
_LOOPED_CHANGES = {
    "no shift": ("model.shift=false",),
    "a, b released": ("model.emb_scale=0.707", "model.hidden_scale=0.053"),
    "a = b = 1": ("model.emb_scale=1", "model.hidden_scale=1"),
    "residual 1/R": ("model.residual_scale=0.5",),
    "gate bias 1": ("model.gate_bias_init=1",),
}


def _search_points() -> Iterator[Point]:
    yield Point("R=3 base", ("model.num_loops=3",))
    for name, overrides in _LOOPED_CHANGES.items():
        yield Point(f"R=2 {name}", ("model.num_loops=2", *overrides))
    for name, overrides in _CHANGES.items():
        for loops in (2, 1):
            yield Point(f"R={loops} {name}", (f"model.num_loops={loops}", *overrides))


SEARCH = Study("search", _BASE, tuple(_search_points()), (1,), losses_table, runs_per_gpu=10)

STUDIES = {study.name: study for study in (FIRST, SEARCH)}
