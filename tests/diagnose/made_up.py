"""Diagnoses as they come out of trained models, with drawn numbers near the published ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from loopcoder.config.objective import ObjectiveConfig
from loopcoder.diagnose.results import ALL, Diagnosis, Exit, Series

LANGUAGES = ("python", "c++", "javascript", "rust", "go", "java", "c#", "shell")
HARD_NAME = "a <b> & \"c\" $x$ 'd' ключ 名前 \x1b[1m with a very long name, so that it must be cut"

Value = Callable[[int, int], float | None]
"""Of (loop, layer); None is not defined."""


def diagnosis(
    rng: random.Random,
    name: str = "loops_2",
    trained: int = 2,
    *,
    loops: int | None = None,
    gates: bool = True,
    layers: int = 14,
    languages: Sequence[str] = LANGUAGES,
    width: float = 0.01,
    loss: Sequence[float] = (),
    is_paired: bool = False,
    **changes: Any,
) -> Diagnosis:
    """Make a diagnosis.

    Args:
        rng: What the values are drawn from.
        name: Its name.
        trained: R of training.
        loops: Loops that were run; None: those of training.
        gates: Whether later loops mix two attentions.
        layers: Number of layers.
        languages: Groups beside the domains.
        width: Half of an interval as a share of its value; 0: there are no intervals.
        loss: By loop, instead of drawn ones.
        is_paired: Whether differences of the loss were measured.
        changes: Values by loop of other measures, "MEASURE_VARIANT" or "MEASURE".
    """
    run = trained if loops is None else loops
    has_gate = gates and trained > 1
    noise = {(r, i): rng.uniform(0.9, 1.1) for r in range(1, run + 1) for i in range(layers)}

    def at(values: Sequence[float], first: int = 1, scale: float = 1.0) -> Value:
        def value(loop: int, layer: int) -> float | None:
            return (
                None
                if loop < first
                else values[min(loop - first, len(values) - 1)] * scale * noise[loop, layer]
            )

        return value

    end = 2.4 - 0.05 * min(trained, 2)
    drawn = list(loss) or [
        end + (0.6 / r if r < trained else 0.02 * (r - trained)) for r in range(1, run + 1)
    ]
    later = 2 if run > 1 else run + 1
    measures: dict[tuple[str, str], tuple[str, Value, bool]] = {
        ("loss", ""): ("nats", lambda r, _: drawn[r - 1], False),
        ("top1", ""): ("", at([0.41, 0.5, 0.51, 0.5]), False),
        ("rank", ""): ("", lambda r, _: float([9, 2, 2, 3][min(r, 4) - 1]), False),
        ("output_entropy", ""): ("nats", at([3.1, 2.3, 2.2, 2.1]), False),
        ("output_shift", ""): ("nats", at([1.75, 1.32, 1.58], later), False),
        ("effective_rank", "normed"): ("", at([150, 174.6, 172.5, 158.2]), False),
        ("attention_entropy", "all"): ("nats", at([2.1, 2.4, 2.3, 2.2]), True),
        ("attention_entropy", "no_first"): ("nats", at([2.9, 3.1, 3.0, 2.9]), True),
        ("attention_change", "all"): ("nats", at([0.6, 0.2, 0.15], later), True),
        ("attention_change", "no_first"): ("nats", at([0.8, 0.3, 0.2], later), True),
        ("head_rank", ""): ("", at([22, 19, 18, 18]), True),
        ("head_cosine", ""): ("", at([0.2, 0.3, 0.3, 0.3]), True),
    }
    for variant, scale in (("raw", 1.0), ("normed", 0.05)):
        measures |= {
            ("step_size", variant): ("", at([1900, 846, 464, 1014], 1, scale), False),
            ("alignment", variant): ("", at([-0.72, -0.46, 0.04], later), False),
            ("offset_cost", variant): ("", at([54, 60, 51], later, scale), False),
        }
        if has_gate:
            gap: Value = at([900, 500, 800, 700], 1, scale)
            measures["fixed_point_gap", variant] = ("", gap, False)
    if is_paired:
        gains = [0.0, *(a - b for a, b in pairwise(drawn))]
        measures["loss_gain", ""] = ("nats", lambda r, _: gains[r - 1] if r > 1 else None, False)
    if has_gate:
        measures["gate", ""] = ("", at([0.62, 0.55, 0.5], 2), True)
    if run > 1:
        parts = [rng.uniform(0.5, 1.5) for _ in range(2, run + 1)]
        shares = [part / sum(parts) for part in parts]
        for variant in ("output_shift", "attention_change", "largest_shift"):
            measures["concentration", variant] = (
                "",
                lambda r, _: shares[r - 2] if r > 1 else None,
                False,
            )
    for key, values in changes.items():
        place = next(k for k in measures if "_".join(filter(None, k)) == key)
        unit, _, has_layers = measures[place]
        fixed: Value = lambda r, _, v=values: v[r - 1] if r <= len(v) else None  # noqa: E731
        measures[place] = (unit, fixed, has_layers)

    groups = [ALL, "domain/code", "domain/text", *(f"language/{name}" for name in languages)]
    return Diagnosis(
        name=name,
        checkpoint=f"/runs/{name}/checkpoints/step_00001000",
        step=1000,
        trained_tokens=12_500_000_000,
        model=_model(trained, layers, gates),
        training={
            "objective": asdict(ObjectiveConfig()),
            "optim": {"lr": 3e-4},
            "seed": 1234,
            "corpus": "1a2b",
            "tokens": 12_500_000_000,
        },
        loops=run,
        data={
            "place": "/data/corpus-1a2b",
            "split": "val",
            "sequences": {"code": 300, "text": 200},
            "tokens": 500 * 4096,
            "sequence_length": 4096,
            "seed": 7,
        },
        made={"version": "0.1.0", "commit": "abc123", "precision": "bf16", "seconds": 411.2},
        series=[
            series
            for group in groups
            for (measure, variant), (unit, value, has_layers) in measures.items()
            for series in _series(
                rng,
                (measure, variant, unit, group),
                run,
                layers if has_layers else None,
                value,
                width,
            )
        ],
        exits=_exits(rng, run, drawn) if run > 1 else [],
        notes=[] if has_gate else ["gate: this model has none"],
    )


def compared(rng: random.Random) -> list[Diagnosis]:
    """Make eight: R = 1 to 4, controls, more loops than were trained, and hard names."""
    return [
        diagnosis(rng, "loops_1", 1),
        diagnosis(rng, "loops_2", 2),
        diagnosis(rng, "loops_3", 3),
        diagnosis(rng, "loops_4", 4),
        diagnosis(rng, "own K/V, no shift", 2, gates=False),
        diagnosis(rng, HARD_NAME, 2, loops=4),
        diagnosis(rng, HARD_NAME, 2, width=0.0),
        diagnosis(rng, "Ünïcode — " + "x" * 90, 3, loops=4, languages=()),
    ]


def _series(
    rng: random.Random,
    key: tuple[str, str, str, str],
    loops: int,
    layers: int | None,
    value: Value,
    width: float,
) -> list[Series]:
    measure, variant, unit, group = key
    runs = list(range(1, loops + 1))
    shift = 1.0 if group == ALL or measure == "concentration" else rng.uniform(0.9, 1.1)

    size = 2_047_500 if group == ALL else rng.randrange(1000, 900_000)

    def values(of: Callable[[float], float | None], layer: int) -> list[float | None]:
        found = [value(loop, layer) for loop in runs]
        return [None if v is None else of(v * shift) for v in found]

    def bound(sign: int) -> Callable[[float], float | None]:
        return lambda v: v + sign * abs(v) * width if width else None

    def whole(of: Callable[[float], float | None]) -> list[Any]:
        if layers is None:
            return values(of, 0)
        return [list(row) for row in zip(*(values(of, i) for i in range(layers)), strict=True)]

    def one(numbers: int | None, whole_of: Callable[..., list[Any]]) -> Series:
        named = list(range(numbers)) if numbers is not None else None
        low, high = whole_of(bound(-1)), whole_of(bound(1))
        return Series(
            *(measure, variant, unit, group, runs, named, whole_of(lambda v: v), low, high),
            counts=whole_of(lambda _: size),
        )

    if layers is None:
        return [one(None, whole)]
    return [one(layers, whole), one(None, lambda of: values(of, 0))]


def _exits(rng: random.Random, loops: int, loss: Sequence[float]) -> list[Exit]:
    found = []
    for rule, thresholds in (("confidence", (0.5, 0.8, 0.95)), ("kl", (1.0, 0.1, 0.01))):
        for i, threshold in enumerate(thresholds):
            part = (i + rng.uniform(0.5, 1)) / 4
            mean = 1 + (loops - 1) * part
            worse = loss[-1] + (loss[0] - loss[-1]) * (1 - part)
            found.append(Exit(rule, threshold, mean, worse, 0.7 + 0.3 * part))
    return found


def _model(trained: int, layers: int, gates: bool) -> dict[str, Any]:
    return {
        "name": "plt_7b",
        "num_loops": trained,
        "num_layers": layers,
        "hidden_size": 5120,
        "ffn_hidden_size": 27648,
        "num_attention_heads": 40,
        "num_kv_heads": 8,
        "head_dim": 128,
        "kv_sharing": "first" if gates else "own",
        "vocab_size": 76800,
    }
