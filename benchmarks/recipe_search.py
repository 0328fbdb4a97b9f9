"""How the recipe was found: the studies behind the dial's numbers, in the order in which they ran.

Each names what it depends on, so that it stays what it was when the recipe changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from recipe_study import Point, Study, losses_table, rates_table

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


_PLAIN = (
    "model.gate_bias_init=0",
    "optim.head_lr_scale=1",
    "optim.vocabulary_warmup_steps=0",
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
        *_PLAIN,
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
    *_PLAIN,
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

# From here on the recipe that these gave.

FIRST_RECIPE = (
    "model.hidden_scale=0.447",
    "model.gate_bias_init=0",
    "optim.embedding_lr_scale=40",
    "optim.head_lr_scale=4",
    "optim.vocabulary_warmup_steps=0",
)
# Does a smaller residual make the best rate of R = 2 that of R = 1 (study `rates`)?

WIDTHS = {
    256: ("model.hidden_size=256", "model.ffn_hidden_size=1408", "model.num_attention_heads=2"),
    512: (),
    1024: ("model.hidden_size=1024", "model.ffn_hidden_size=5632", "model.num_attention_heads=8"),
}


def at_rate(name: str, power: int, *overrides: str) -> Point:
    """A point at 1e-3 times a power of the root of 2."""
    rate = 1e-3 * 2 ** (power / 2)
    return Point(f"{name} lr {rate:.2e}", (*overrides, f"optim.lr={rate:.4g}"))


def _residual_points() -> Iterator[Point]:
    looped, half = "model.num_loops=2", "model.residual_scale=0.5"
    for width, powers in ((512, (-1, 0, 1, 2, 3)), (256, (0, 2, 3))):
        for power in powers:
            yield at_rate(f"width {width} residual 1/R", power, *WIDTHS[width], looped, half)
    slower = "optim.embedding_lr_scale=20"
    yield at_rate("width 512 residual 1, embedding x20", 2, looped, slower)
    for power in (2, 3):
        yield at_rate("width 512 residual 1/R, embedding x20", power, looped, half, slower)


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
            yield at_rate(name, power, *WIDTHS[width], f"model.num_loops={loops}")
    for power in _DENSE_POWERS:
        yield at_rate("width 512 R=1, 8 layers", power, "variant=dense_2x")


SHORT = (
    "model=plt_20m",
    "data.isolate_documents=false",
    "train.tokens=10300000",
    "train.global_batch_size=4",
    "train.micro_batch_size=4",
    "eval.sequences_per_domain=128",
)
_RATE_STUDIES = (("residual", _residual_points), ("rates", _rate_points))
RESIDUAL, RATES = (
    Study(name, (*SHORT, *FIRST_RECIPE), tuple(points()), (1,), rates_table, runs_per_gpu=8)
    for name, points in _RATE_STUDIES
)
