"""How the recipe was found: the studies behind the dial's numbers, in the order in which they ran.

Each names what it depends on, so that it stays what it was when the recipe changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from recipe_study import Point, Study, losses_table, rates_table, spikes_table

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

# From here on the recipe of the time.

_RECIPE = (
    "model.hidden_scale=0.447",
    "model.gate_bias_init=0",
    "optim.embedding_lr_scale=40",
    "optim.head_lr_scale=4",
    "optim.vocabulary_warmup_steps=0",
)
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


_SHORT = (
    "model=plt_20m",
    *_RECIPE,
    "data.isolate_documents=false",
    "train.tokens=10300000",
    "train.global_batch_size=4",
    "train.micro_batch_size=4",
    "eval.sequences_per_domain=128",
)
RESIDUAL = Study("residual", _SHORT, tuple(_residual_points()), (1,), rates_table, runs_per_gpu=8)
RATES = Study("rates", _SHORT, tuple(_rate_points()), (1,), rates_table, runs_per_gpu=8)

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
    ("model=plt_20m", *_RECIPE, "train.tokens=33000000", "eval.sequences_per_domain=128"),
    tuple(_long_points()),
    (1,),
    rates_table,
    runs_per_gpu=8,
)

# Which of these begin without spikes: 4 x 8192 tokens a step, 10 steps of warm-up.

SHORT_WARMUP = (
    "data.seq_length=8192",
    "train.global_batch_size=4",
    "train.micro_batch_size=1",
    "train.max_steps=200",
    "optim.schedule.warmup_steps=10",
    "logging.loop_gradients=true",
    "eval.sequences_per_domain=16",
)

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
        *_RECIPE,
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
