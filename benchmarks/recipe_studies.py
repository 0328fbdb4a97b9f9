"""What benchmarks/recipes.py trains, in this order: how the recipe was found, and what it gives."""

from __future__ import annotations

from dataclasses import replace

from recipe_long import (
    CALM,
    CALM_100M,
    LONG_RATES,
    LOOPS,
    LOOPS_FIRST,
    ONE_LOOP,
    SHORT_WARMUP,
    SPIKES_FIRST,
    VARIANTS,
)
from recipe_search import (
    BATCHES,
    FIRST,
    RATES,
    RESIDUAL,
    SCALES,
    SEARCH,
    SHORT,
    WIDTHS,
    at_rate,
    peer,
)
from recipe_study import Point, Study, loops_table, losses_table, rates_table, spikes_table

# What loops bring: the points of experiment=loop_sweep.

_VARIANT_POINTS = tuple(Point(name, (f"variant={name}",)) for name in VARIANTS)
_PEERS = (peer("1e-3", "0.02"), peer("1e-3", "0.044"), peer("2e-3", "0.044"))
PEERS_20M = Study(
    "peers_20m", ("model=plt_20m", *LOOPS), _PEERS, (1, 2), losses_table, runs_per_gpu=8
)
LOOPS_20M = Study(
    "loops_20m",
    ("model=plt_20m", *LOOPS),
    _VARIANT_POINTS,
    (1, 2, 3),
    loops_table,
    runs_per_gpu=8,
)
LOOPS_100M = Study(
    "loops_100m",
    ("model=plt_100m", *LOOPS),
    _VARIANT_POINTS,
    (1,),
    loops_table,
    runs_per_gpu=3,
)

# No spikes at the start.


def _spike_study(size: str, runs_per_gpu: int) -> Study:
    points = tuple(Point(f"R={r}", (f"model.num_loops={r}",)) for r in (2, 1, 3, 4))
    shared = (f"model=plt_{size}", *SHORT_WARMUP)
    return Study(f"spikes_{size}", shared, points, (1,), spikes_table, runs_per_gpu)


SPIKES = tuple(_spike_study(size, n) for size, n in (("20m", 8), ("100m", 4), ("1b", 1)))

# The b that wins at 33M tokens begins slowly: is there one that does both?

INJECTION = Study(
    "injection",
    ("model=plt_20m", *LOOPS, "model.num_loops=2"),
    (
        Point("R=1", ("model.num_loops=1",)),
        *(
            Point(f"b {b}", (f"model.hidden_scale={b}",))
            for b in ("0.3", "0.447", "0.57", "0.68", "0.805")
        ),
    ),
    (1, 2),
    losses_table,
    runs_per_gpu=8,
)
INJECTION_START = Study(
    "injection_start",
    ("model=plt_20m", *SHORT_WARMUP, "model.num_loops=2"),
    INJECTION.points,
    (1,),
    spikes_table,
    runs_per_gpu=8,
)

INJECTION_1B = Study(
    "injection_1b",
    ("model=plt_1b", *SHORT_WARMUP, "train.max_steps=100"),
    (
        Point("R=1", ("model.num_loops=1",)),
        *(
            Point(f"b {b}", ("model.num_loops=2", f"model.hidden_scale={b}"))
            for b in ("0.68", "0.447", "0.57", "0.3", "0.805")
        ),
    ),
    (1,),
    spikes_table,
    runs_per_gpu=1,
)

# At 1B two loops are 0.5 behind one in the first 100 steps: is it the rate of a deeper model?

_SMALL_B = ("model.hidden_scale=0.447", "model.gate_bias_init=0")
_SLOWER = "optim.lr=0.00085"
RATE_1B = Study(
    "rate_1b",
    ("model=plt_1b", *SHORT_WARMUP, "train.max_steps=100", "model.hidden_scale=0.68"),
    (
        Point("R=2, half the rate", ("model.num_loops=2", _SLOWER)),
        Point(
            "R=2, half the matrices' rate",
            ("model.num_loops=2", _SLOWER, "optim.embedding_lr_scale=80", "optim.head_lr_scale=8"),
        ),
        Point("R=2, b 0.447, gate bias 0", ("model.num_loops=2", *_SMALL_B)),
        Point("R=2, gate bias 0", ("model.num_loops=2", "model.gate_bias_init=0")),
        Point("R=1, half the rate", ("model.num_loops=1", _SLOWER)),
    ),
    (1,),
    spikes_table,
    runs_per_gpu=2,
)

# It is: the dial as it is now, whose rates fall with the root of the depth.

_ONE_AND_TWO = tuple(Point(f"R={r}", (f"model.num_loops={r}",)) for r in (2, 1))
DEPTH_1B, DEPTH_100M = (
    Study(
        f"depth_{size}",
        (f"model=plt_{size}", *SHORT_WARMUP, "train.max_steps=100"),
        _ONE_AND_TWO,
        (1,),
        spikes_table,
        runs_per_gpu=2,
    )
    for size in ("1b", "100m")
)
DIAL_20M = replace(LOOPS_20M, name="dial_20m")

# The rate of two loops and four with the recipe as it is; that of one is study `rates`.

_POWERS = {
    (256, 2): (-4, -3, -2, -1, 0, 1, 2, 3),
    (512, 2): (-4, -3, -2, -1, 0, 1, 2, 3),
    (1024, 2): (-4, -3, -2, -1, 0, 1, 2, 3),
    (512, 4): (-4, -3, -2, -1, 0, 1, 2),
}
RATES_LOOPED = Study(
    "rates_looped",
    (*SHORT, "model.hidden_scale=0.805"),
    tuple(
        at_rate(f"width {width} R={loops}", power, *WIDTHS[width], f"model.num_loops={loops}")
        for (width, loops), powers in _POWERS.items()
        for power in powers
    ),
    (1,),
    rates_table,
    runs_per_gpu=8,
)
# The same with the dial's b.

RATES_INJECTED = Study(
    "rates_injected",
    (*SHORT, "model.hidden_scale=0.68"),
    tuple(
        at_rate(f"width {width} R=2", power, *WIDTHS[width], "model.num_loops=2")
        for width in (1024, 512, 256)
        for power in (-2, -1, 0, 1, 2)
    ),
    (1,),
    rates_table,
    runs_per_gpu=8,
)

_SEARCH = (
    FIRST,
    SEARCH,
    SCALES,
    BATCHES,
    RESIDUAL,
    RATES,
    LOOPS_FIRST,
    SPIKES_FIRST,
    LONG_RATES,
    CALM,
    CALM_100M,
    ONE_LOOP,
)
_ANSWERS = (
    SPIKES[0],
    LOOPS_20M,
    PEERS_20M,
    *SPIKES[1:],
    LOOPS_100M,
    RATES_LOOPED,
    RATES_INJECTED,
    INJECTION_START,
    INJECTION,
    INJECTION_1B,
    RATE_1B,
)
_DIAL = (DEPTH_1B, DEPTH_100M, DIAL_20M)


def _of_any_depth(study: Study) -> Study:
    """Rates as they were for these: a deeper model's were not lower."""
    return replace(study, shared=(*study.shared, "optim.base_num_layers=null"))


STUDIES = {s.name: s for s in (*map(_of_any_depth, (*_SEARCH, *_ANSWERS)), *_DIAL)}
