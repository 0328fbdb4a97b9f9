"""What benchmarks/recipes.py trains, in this order, and how each study becomes a table."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

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
        "optim.embedding_lr_scale=1",
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


# The rates of embedding and head, which the search left open, and a plain transformer beside them.

_PARTS = ((80, 1), (160, 1), (40, 4), (80, 4), (160, 4), (80, 16))


def _scale_points() -> Iterator[Point]:
    for loops, (embedding, head) in itertools.product((2, 1), _PARTS):
        yield Point(
            f"R={loops} embedding x{embedding} head x{head}",
            (
                f"model.num_loops={loops}",
                f"optim.embedding_lr_scale={embedding}",
                f"optim.head_lr_scale={head}",
            ),
        )
    for std in ("0.02", "0.044"):
        yield peer("5e-4", std)
    yield peer("1e-3", "0.044")
    for rate, std in (("1e-3", "0.02"), ("2e-3", "0.02"), ("2e-3", "0.044"), ("4e-3", "0.02")):
        yield peer(rate, std)


def peer(rate: str, std: str) -> Point:
    """A plain PyTorch transformer of R = 1's shape, with one rate and one initial scale."""
    overrides = ("model.num_loops=1", "optim.embedding_lr_scale=1", "optim.base_hidden_size=null")
    script = ("peer.py", "--lr", rate, "--init-std", std, "--compile")
    return Point(f"peer lr {rate} std {std}", overrides, script)


SCALES = Study("scales", _BASE, tuple(_scale_points()), (1,), losses_table, runs_per_gpu=8)

# Batch and rate: does the rate grow with the root of the batch, and what does a larger batch cost?

_BATCHES = ((8, "1.4e-3"), (16, "1e-3"), (16, "2e-3"))


def _batch_points() -> Iterator[Point]:
    for loops, (sequences, rate) in itertools.product((2, 1), _BATCHES):
        yield Point(
            f"R={loops} {sequences} sequences, lr {rate}",
            (
                f"model.num_loops={loops}",
                f"train.global_batch_size={sequences}",
                f"train.micro_batch_size={min(8, sequences)}",
                f"train.max_steps={8000 // sequences}",
                f"optim.lr={rate}",
                f"optim.min_lr={float(rate) / 10:g}",
            ),
        )


BATCHES = Study(
    "batches",
    (*_BASE, "optim.embedding_lr_scale=40", "optim.head_lr_scale=4"),
    tuple(_batch_points()),
    (1,),
    losses_table,
    runs_per_gpu=6,
)

# From here on the presets as they are.

# Does a smaller residual make the best rate of R = 2 that of R = 1 (study `rates`)?

_WIDTHS = {
    256: ("model.hidden_size=256", "model.ffn_hidden_size=1408", "model.num_attention_heads=2"),
    512: (),
    1024: ("model.hidden_size=1024", "model.ffn_hidden_size=5632", "model.num_attention_heads=8"),
}


def _at_rate(name: str, power: int, *overrides: str) -> Point:
    """A point at 1e-3 times a power of the root of 2."""
    rate = 1e-3 * 2 ** (power / 2)
    return Point(f"{name} lr {rate:.2e}", (*overrides, f"optim.lr={rate:.4g}"))


def _residual_points() -> Iterator[Point]:
    looped, half = "model.num_loops=2", "model.residual_scale=0.5"
    for width, powers in ((512, (-1, 0, 1, 2, 3)), (256, (0, 2, 3))):
        for power in powers:
            yield _at_rate(f"width {width} residual 1/R", power, *_WIDTHS[width], looped, half)
    slower = "optim.embedding_lr_scale=20"
    yield _at_rate("width 512 residual 1, embedding x20", 2, looped, slower)
    for power in (2, 3):
        yield _at_rate("width 512 residual 1/R, embedding x20", power, looped, half, slower)


# Does the rate hold over widths and loops? Steps of the root of 2.

_POWERS = {
    (256, 1): (-2, -1, 0, 1, 2, 3),
    (512, 1): (-2, -1, 0, 1, 2, 3),
    (1024, 1): (-1, 0, 1, 2, 3),
    (256, 2): (-3, -2, -1, 0, 1, 2),
    (512, 2): (-3, -2, -1, 0, 1, 2),
    (1024, 2): (-2, -1, 0, 1),
    (512, 4): (-4, -3, -2, -1, 0),
}
_DENSE_POWERS = (-1, 0, 1, 2)


def _rate_points() -> Iterator[Point]:
    for (width, loops), powers in _POWERS.items():
        for power in powers:
            name = f"width {width} R={loops}"
            yield _at_rate(name, power, *_WIDTHS[width], f"model.num_loops={loops}")
    for power in _DENSE_POWERS:
        yield _at_rate("width 512 R=1, 8 layers", power, "variant=dense_2x")


def rates_table(records: Sequence[Record]) -> str:
    """The best rate of each model, by a parabola in log2 of the rate through all points, and how
    far above it the parabola is at the recipe's rate."""
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
    """Return the rate at the lowest point of a parabola in log2 of the rate, fitted by least
    squares, and its leading coefficient; None where it has no such point within the rates tried."""
    if len(curve) < 3:
        return None
    x = np.log2([rate for rate, _ in curve])
    a, b, _ = np.polyfit(x, [loss for _, loss in curve], 2)
    lowest = -b / (2 * a) if a > 0 else None
    if lowest is None or not x.min() <= lowest <= x.max():
        return None
    return float(2**lowest), float(a)


_SHORT = (
    "model=plt_20m",
    "data.isolate_documents=false",
    "train.tokens=10300000",
    "train.global_batch_size=4",
    "train.micro_batch_size=4",
    "eval.sequences_per_domain=128",
)
RESIDUAL = Study("residual", _SHORT, tuple(_residual_points()), (1,), rates_table, runs_per_gpu=8)
RATES = Study("rates", _SHORT, tuple(_rate_points()), (1,), rates_table, runs_per_gpu=8)

# The same at 33M tokens and the recipe's batch, with the embedding's rate apart from the others'.

_SLOWER, _SLOW_HEAD, _STRONG_B = (
    "optim.embedding_lr_scale=20",
    "optim.head_lr_scale=1",
    "model.hidden_scale=0.805",
)
_LOCAL = "model.gate_bias_init=-2"
_TWO = {
    "": (("2.4e-3", "3.4e-3"), ()),
    ", embedding x20": (("2.4e-3", "3.4e-3", "4.8e-3"), (_SLOWER,)),
    ", embedding x20, gate bias -2": (("2.4e-3",), (_SLOWER, _LOCAL)),
    ", embedding x20, b 0.805": (("2.4e-3",), (_SLOWER, _STRONG_B)),
    ", embedding x20, b 0.805, head x1": (("2.4e-3", "1.7e-3"), (_SLOWER, _STRONG_B, _SLOW_HEAD)),
    ", embedding x20, b 0.805, gate bias -2": (("2.4e-3",), (_SLOWER, _STRONG_B, _LOCAL)),
    ", embedding x20, b 0.805, gate bias -2, head x1": (
        ("1.7e-3",),
        (_SLOWER, _STRONG_B, _LOCAL, _SLOW_HEAD),
    ),
    ", embedding x20, b 1.2": (("2.4e-3",), (_SLOWER, "model.hidden_scale=1.2")),
}
_ONE = {
    ", embedding x20": (("3.4e-3",), (_SLOWER,)),
    ", embedding x20, head x1": (("3.4e-3", "2.4e-3"), (_SLOWER, _SLOW_HEAD)),
}


def _long_points() -> Iterator[Point]:
    yield Point(
        "R=1, 8 layers, embedding x20 lr 3.4e-3", ("variant=dense_2x", _SLOWER, "optim.lr=3.4e-3")
    )
    for loops, changes in ((2, _TWO), (1, _ONE)):
        for name, (rates, overrides) in changes.items():
            for rate in rates:
                shared = (f"model.num_loops={loops}", *overrides)
                yield Point(f"R={loops}{name} lr {rate}", (*shared, f"optim.lr={rate}"))


# What loops bring: the points of experiment=loop_sweep.

_VARIANTS = ("loops_1", "loops_2", "loops_3", "loops_4", "no_shift", "own_kv", "dense_2x")
_VARIANT_POINTS = tuple(Point(name, (f"variant={name}",)) for name in _VARIANTS)
_LOOPS = ("train.tokens=33000000", "eval.sequences_per_domain=128")
LONG_RATES = Study(
    "long_rates",
    ("model=plt_20m", *_LOOPS),
    tuple(_long_points()),
    (1,),
    rates_table,
    runs_per_gpu=8,
)
_PEER = (peer("1e-3", "0.02"), peer("1e-3", "0.044"), peer("2e-3", "0.044"))
LOOPS_20M = Study(
    "loops_20m",
    ("model=plt_20m", *_LOOPS),
    (*_VARIANT_POINTS, *_PEER),
    (1, 2, 3),
    losses_table,
    runs_per_gpu=8,
)
LOOPS_100M = Study(
    "loops_100m",
    ("model=plt_100m", *_LOOPS),
    _VARIANT_POINTS,
    (1,),
    losses_table,
    runs_per_gpu=3,
)

# No spikes at the start: 4 x 8192 tokens a step, 10 steps of warm-up.

_SPIKES = (
    "data.seq_length=8192",
    "train.global_batch_size=4",
    "train.micro_batch_size=1",
    "train.max_steps=200",
    "optim.schedule.warmup_steps=10",
    "logging.loop_gradients=true",
    "eval.sequences_per_domain=16",
)


def spikes_table(records: Sequence[Record]) -> str:
    """The furthest that a loss of the first 200 steps lies above the mean of the ten before."""
    body = []
    for record in records:
        losses = record["first_losses"]
        above = max(
            loss - statistics.fmean(losses[max(0, i - 10) : i])
            for i, loss in enumerate(losses)
            if i > 0
        )
        norms = " ".join(f"{x:.1f}" for x in record["first_grad_norms"][:3])
        last = losses[90:100] or losses[-10:]
        body.append([record["point"], f"{above:+.3f}", norms, f"{statistics.fmean(last):.3f}"])
    return rows(
        ["model", "highest above", "first gradient norms", "steps 91 to 100 (or last ten)"], body
    )


def _spike_study(size: str, runs_per_gpu: int) -> Study:
    points = tuple(Point(f"R={r}", (f"model.num_loops={r}",)) for r in (2, 1, 3, 4))
    shared = (f"model=plt_{size}", *_SPIKES)
    return Study(f"spikes_{size}", shared, points, (1,), spikes_table, runs_per_gpu)


def _calm_points() -> Iterator[Point]:
    for loops, changes in (
        (
            1,
            (
                (),
                (_SLOW_HEAD,),
                ("optim.embedding_lr_scale=10",),
                (_SLOW_HEAD, _SLOWER),
                (_SLOW_HEAD, "optim.embedding_lr_scale=10"),
                (_SLOW_HEAD, _SLOWER, "optim.lr=1.7e-3"),
                (_SLOW_HEAD, _SLOWER, "optim.beta2=0.99"),
            ),
        ),
        (
            2,
            (
                (_SLOW_HEAD,),
                (_SLOW_HEAD, _SLOWER),
                (_SLOW_HEAD, "optim.embedding_lr_scale=10"),
                (_SLOW_HEAD, _SLOWER, _STRONG_B),
                (_SLOW_HEAD, _SLOWER, _STRONG_B, _LOCAL),
                (_SLOW_HEAD, _SLOWER, _STRONG_B, "optim.lr=8.5e-4"),
                (_SLOW_HEAD, _SLOWER, _STRONG_B, "optim.beta2=0.99"),
            ),
        ),
    ):
        for overrides in changes:
            name = " ".join([f"R={loops}", *overrides])
            yield Point(name, (f"model.num_loops={loops}", *overrides))


CALM = Study(
    "calm",
    ("model=plt_20m", *_SPIKES, "train.max_steps=60", "eval.interval=1000", "eval.at_end=false"),
    tuple(_calm_points()),
    (1,),
    spikes_table,
    runs_per_gpu=7,
)
SPIKES = tuple(_spike_study(size, n) for size, n in (("20m", 8), ("100m", 4), ("1b", 1)))

_IN_ORDER = (
    FIRST,
    SEARCH,
    SCALES,
    BATCHES,
    RESIDUAL,
    RATES,
    LONG_RATES,
    LOOPS_20M,
    CALM,
    *SPIKES,
    LOOPS_100M,
)
STUDIES = {study.name: study for study in _IN_ORDER}
