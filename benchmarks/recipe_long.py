"""What the first recipe gave at 33M tokens, and what two loops, and a calm start, need there."""

from __future__ import annotations

from collections.abc import Iterator

from recipe_search import FIRST_RECIPE
from recipe_study import Point, Study, loops_table, losses_table, rates_table, spikes_table

# What it brings at 33M tokens, and how it begins with 10 steps of warm-up.

LOOPS = ("train.tokens=33000000", "eval.sequences_per_domain=128")
VARIANTS = ("loops_1", "loops_2", "loops_3", "loops_4", "no_shift", "own_kv", "dense_2x")
LOOPS_FIRST = Study(
    "loops_first",
    ("model=plt_20m", *LOOPS, *FIRST_RECIPE),
    tuple(Point(name, (f"variant={name}",)) for name in VARIANTS),
    (1, 2),
    loops_table,
    runs_per_gpu=8,
)
SHORT_WARMUP = (
    "data.seq_length=8192",
    "train.global_batch_size=4",
    "train.micro_batch_size=1",
    "train.max_steps=200",
    "optim.schedule.warmup_steps=10",
    "logging.loop_gradients=true",
    "eval.sequences_per_domain=16",
)
SPIKES_FIRST = Study(
    "spikes_first",
    ("model=plt_20m", *SHORT_WARMUP, *FIRST_RECIPE),
    (
        *(Point(f"R={r}", (f"model.num_loops={r}",)) for r in (2, 1, 3, 4)),
        Point("R=1, 100M", ("model=plt_100m", "model.num_loops=1")),
    ),
    (1,),
    spikes_table,
    runs_per_gpu=8,
)

# At 33M tokens and the recipe's batch: one loop catches up with two; what do two need?

_B, _LOCAL = "model.hidden_scale=0.805", "model.gate_bias_init=-2"


def _scales(embedding: int, head: int) -> tuple[str, str]:
    return f"optim.embedding_lr_scale={embedding}", f"optim.head_lr_scale={head}"


def _warm(steps: int) -> str:
    return f"optim.vocabulary_warmup_steps={steps}"


_LONG_POINTS = (
    ("R=2", ("2.4e-3", "3.4e-3"), ()),
    ("R=2, embedding x20", ("2.4e-3", "3.4e-3", "4.8e-3"), _scales(20, 4)),
    ("R=2, embedding x20, gate bias -2", ("2.4e-3",), (*_scales(20, 4), _LOCAL)),
    ("R=2, embedding x20, b 0.805", ("2.4e-3",), (*_scales(20, 4), _B)),
    ("R=2, embedding x20, b 0.805, head x1", ("2.4e-3", "1.7e-3"), (*_scales(20, 1), _B)),
    ("R=2, embedding x20, b 0.805, gate bias -2", ("2.4e-3",), (*_scales(20, 4), _B, _LOCAL)),
    (
        "R=2, embedding x20, b 0.805, gate bias -2, head x1",
        ("1.7e-3",),
        (*_scales(20, 1), _B, _LOCAL),
    ),
    ("R=2, embedding x20, b 1.2", ("2.4e-3",), (*_scales(20, 4), "model.hidden_scale=1.2")),
    ("R=2, b 0.805, gate bias -2", ("1.7e-3", "2.4e-3"), (_B, _LOCAL)),
    ("R=2, b 0.805, gate bias -2, warm-up 100", ("1.7e-3",), (_B, _LOCAL, _warm(100))),
    (
        "R=2, embedding x20, b 0.805, gate bias -4",
        ("2.4e-3",),
        (*_scales(20, 4), _B, "model.gate_bias_init=-4"),
    ),
    ("R=1", ("2.4e-3", "4.8e-3"), ()),
    ("R=1, warm-up 100", ("3.4e-3",), (_warm(100),)),
    ("R=1, embedding x80", ("2.4e-3",), _scales(80, 4)),
    ("R=1, embedding x20", ("3.4e-3",), _scales(20, 4)),
    ("R=1, embedding x20, head x1", ("3.4e-3", "2.4e-3"), _scales(20, 1)),
)
_DENSE = (("20", "3.4e-3"), ("40", "1.7e-3"), ("80", "1.7e-3"))


def _long_points() -> Iterator[Point]:
    for name, rates, changes in _LONG_POINTS:
        for rate in rates:
            shared = (f"model.num_loops={name[2]}", *changes)
            yield Point(f"{name} lr {rate}", (*shared, f"optim.lr={rate}"))
    for scale, rate in _DENSE:
        changes = ("variant=dense_2x", f"optim.embedding_lr_scale={scale}", f"optim.lr={rate}")
        yield Point(f"R=1, 8 layers, embedding x{scale} lr {rate}", changes)


LONG_RATES = Study(
    "long_rates",
    ("model=plt_20m", *FIRST_RECIPE, *LOOPS),
    tuple(_long_points()),
    (1,),
    rates_table,
    runs_per_gpu=8,
)

# Embedding and head that warm up over 200 steps cost one loop 0.5 nats: what does it need?

_ONE_LOOP = (
    ("3.4e-3", 40, 4, 200),
    ("3.4e-3", 40, 1, 0),
    ("3.4e-3", 40, 1, 100),
    ("3.4e-3", 80, 1, 100),
    ("3.4e-3", 80, 1, 0),
    ("1.7e-3", 80, 4, 0),
    ("1.7e-3", 80, 1, 100),
    ("1.7e-3", 160, 1, 100),
    ("1.7e-3", 160, 4, 0),
)


def _one_loop_points() -> Iterator[Point]:
    for rate, embedding, head, warm in _ONE_LOOP:
        changes = (*_scales(embedding, head), _warm(warm), f"optim.lr={rate}")
        yield Point(f"embedding x{embedding} head x{head} warm-up {warm} lr {rate}", changes)
    yield Point(
        "8 layers, embedding x40 head x4 warm-up 200 lr 3.4e-3", ("variant=dense_2x", _warm(200))
    )


ONE_LOOP = Study(
    "one_loop",
    ("model=plt_20m", *FIRST_RECIPE, *LOOPS, "model.num_loops=1"),
    tuple(_one_loop_points()),
    (1, 2, 3),
    losses_table,
    runs_per_gpu=8,
)

# Which of these begin without spikes: 4 x 8192 tokens a step, 10 steps of warm-up.

_RATE = {1: "3.4e-3", 2: "1.7e-3", 4: "1.7e-3"}
_CALM_POINTS: dict[int, tuple[tuple[str, tuple[str, ...]], ...]] = {
    1: (
        ("", ()),
        (" head x1", _scales(40, 1)),
        (" embedding x10", _scales(10, 4)),
        (" embedding x20, head x1", _scales(20, 1)),
        (" embedding x10, head x1", _scales(10, 1)),
        (" embedding x20, head x1, half the rate", (*_scales(20, 1), "optim.lr=1.7e-3")),
        (" embedding x20, head x1, beta2 0.99", (*_scales(20, 1), "optim.beta2=0.99")),
        *((f" warm-up {n}", (_warm(n),)) for n in (50, 100, 200, 400)),
        *((f" head x1, warm-up {n}", (*_scales(40, 1), _warm(n))) for n in (100, 200)),
    ),
    2: (
        (" head x1", _scales(40, 1)),
        (" embedding x20, head x1", _scales(20, 1)),
        (" embedding x10, head x1", _scales(10, 1)),
        (" embedding x20, head x1, b 0.805", (*_scales(20, 1), _B)),
        (" embedding x20, head x1, b 0.805, gate bias -2", (*_scales(20, 1), _B, _LOCAL)),
        (
            " embedding x20, head x1, b 0.805, half the rate",
            (*_scales(20, 1), _B, "optim.lr=8.5e-4"),
        ),
        (
            " embedding x20, head x1, b 0.805, beta2 0.99",
            (*_scales(20, 1), _B, "optim.beta2=0.99"),
        ),
        *((f" b 0.805, gate bias -2, warm-up {n}", (_B, _LOCAL, _warm(n))) for n in (50, 100, 200)),
    ),
    4: tuple((f" b 0.805, gate bias -2, warm-up {n}", (_B, _LOCAL, _warm(n))) for n in (100, 200)),
}


def _calm_points() -> Iterator[Point]:
    for loops, changes in _CALM_POINTS.items():
        for name, overrides in changes:
            shared = (f"model.num_loops={loops}", f"optim.lr={_RATE[loops]}")
            yield Point(f"R={loops}{name}", (*shared, *overrides))


CALM = Study(
    "calm",
    (
        "model=plt_20m",
        *FIRST_RECIPE,
        *SHORT_WARMUP,
        "train.max_steps=60",
        "eval.interval=1000",
        "eval.at_end=false",
    ),
    tuple(_calm_points()),
    (1,),
    spikes_table,
    runs_per_gpu=8,
)

# One loop at 100M rises once by 2.2, in the first step at its full rate: what helps there?

CALM_100M = Study(
    "calm_100m",
    (
        "model=plt_100m",
        "model.num_loops=1",
        "optim.lr=3.4e-3",
        *SHORT_WARMUP,
        "train.max_steps=60",
        "eval.interval=1000",
        "eval.at_end=false",
    ),
    (
        Point("R=1, half the rate", ("optim.lr=1.7e-3",)),
        Point("R=1, 0.7 of the rate", ("optim.lr=2.4e-3",)),
        Point("R=1, head x1", _scales(40, 1)),
        Point("R=1, beta2 0.99", ("optim.beta2=0.99",)),
        Point("R=1, warm-up 20", ("optim.schedule.warmup_steps=20",)),
        Point("R=1, vocabulary 400", (_warm(400),)),
    ),
    (1,),
    spikes_table,
    runs_per_gpu=4,
)
