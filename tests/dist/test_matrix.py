"""The whole matrix of layouts against one process (make test-dist)."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tests.dist.layouts import Case
from tests.dist.test_pipeline import check, compare

pytestmark = pytest.mark.dist_full

OVERLAPS = dict(overlap_grad_reduce=True, overlap_param_gather=True)
LAYOUTS: dict[str, tuple[int, int, dict[str, Any]]] = {
    # processes, layers, parallel
    "pp2": (2, 4, dict(pp=2)),
    "pp2 uneven": (2, 5, dict(pp=2)),
    "pp2 two chunks": (2, 6, dict(pp=2, chunks_per_loop=2)),
    "tp2": (2, 2, dict(tp=2)),
    "tp2 sp": (2, 2, dict(tp=2, sp=True)),
    "dp2 overlaps": (2, 2, OVERLAPS),
    "pp4": (4, 6, dict(pp=4)),
    "tp2 sp pp2": (4, 3, dict(tp=2, sp=True, pp=2)),
    "dp2 pp2 overlaps": (4, 3, dict(pp=2) | OVERLAPS),
}
CASES = {
    f"{name} r{loops} {recompute} {'packed' if isolate else 'rows'}": (
        world,
        Case(
            f"{name} r{loops} {recompute} {isolate}",
            dict(num_loops=loops, num_layers=layers),
            parallel | dict(recompute=recompute),
            isolate,
        ),
    )
    for (name, (world, layers, parallel)), loops, recompute, isolate in product(
        LAYOUTS.items(), (1, 2, 3, 4), ("none", "full"), (True, False)
    )
}


@pytest.fixture(scope="module")
def results(ranks: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for world in (2, 4):
        out |= compare(world, [case for size, case in CASES.values() if size == world])
    return out


@pytest.mark.parametrize("name", CASES)
def test_layout_equals_one_process(results: dict[str, Any], name: str) -> None:
    check(results[CASES[name][1].name])
