"""Trained models that differ in their loops, compared at their own R."""

from __future__ import annotations

import random
from typing import Any

from loopcoder.diagnose.compare import compare
from loopcoder.diagnose.results import Diagnosis
from tests.diagnose.made_up import diagnosis


def trained(rng: random.Random, loops: int, loss: float, **changes: Any) -> Diagnosis:
    by_loop = [*[loss + 1] * (loops - 1), loss]
    return diagnosis(rng, f"r{loops}", loops, layers=1, languages=(), loss=by_loop, **changes)


def test_more_loops_are_taken_while_the_loss_falls(rng: random.Random) -> None:
    models = [trained(rng, r, x) for r, x in ((3, 2.05), (1, 2.4), (4, 2.2), (2, 2.1))]
    found = compare(models)
    assert found is not None
    assert found.loops == 3
    assert found.text == "R = 3, of the models trained with R = 1, 2, 3, 4."
    assert found.reasons[:3] == [
        "R = 2: 2.100 ± 0.021 nats against 2.400 ± 0.024 of R = 1; lower by 0.300 ± 0.032.",
        "R = 3: 2.050 ± 0.021 nats against 2.100 ± 0.021 of R = 2; lower by 0.050 ± 0.029.",
        "R = 4: 2.200 ± 0.022 nats against 2.050 ± 0.021 of R = 3; higher by 0.150 ± 0.030.",
    ]


def test_within_the_intervals_fewer_loops_are_taken(rng: random.Random) -> None:
    found = compare([trained(rng, 1, 2.4), trained(rng, 2, 2.39), trained(rng, 3, 2.0)])
    assert found is not None
    assert found.loops == 3
    assert "not told apart, so fewer loops are taken" in found.reasons[0]
    assert "against 2.400 ± 0.024 of R = 1; lower by" in found.reasons[1]


def test_seeds_widen_what_they_disagree_on(rng: random.Random) -> None:
    pair = [trained(rng, 1, 2.3), trained(rng, 2, 2.2)]
    one_run = compare(pair)
    assert one_run is not None
    assert one_run.loops == 2
    assert any("without the spread of training seeds" in r for r in one_run.reasons)
    seeds = compare([*pair, trained(rng, 1, 2.1), trained(rng, 2, 2.4)])
    assert seeds is not None
    assert seeds.loops == 1
    assert "R = 2: 2.30 ± 0.20 nats against 2.20 ± 0.20 of R = 1; not told" in seeds.reasons[0]
    assert not any("One run of each" in r for r in seeds.reasons)


def test_only_what_differs_in_loops_alone_is_compared(rng: random.Random) -> None:
    one, two = trained(rng, 1, 2.4), trained(rng, 2, 2.3)
    assert compare([one]) is None
    assert compare([two, trained(rng, 2, 2.2)]) is None
    assert compare([one, trained(rng, 2, 2.3, gates=False)]) is None
    for field, other in (("sequence_length", 8192), ("place", "/data/another"), ("seed", 8)):
        two = trained(rng, 2, 2.3)
        two.data[field] = other
        assert compare([one, two]) is None, field
    for field, other in (("optim", {"lr": 1e-3}), ("corpus", "3c4d"), ("tokens", 9)):
        two = trained(rng, 2, 2.3)
        two.training[field] = other
        assert compare([one, two]) is None, field
    two = trained(rng, 2, 2.3)
    two.training["objective"]["exit"] = True
    assert compare([one, two]) is None
    two = trained(rng, 2, 2.3)
    two.training["seed"] = 7
    assert compare([one, two]) is not None
    two = trained(rng, 2, 2.3)
    for moved, place in ((one, "/a"), (two, "/b")):
        moved.data.update(fingerprint="1a2b", place=place, seed=7)
    two.model.update(name="another", kernels="stock")
    assert compare([one, two]) is not None
