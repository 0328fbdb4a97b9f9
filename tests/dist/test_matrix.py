"""The whole matrix of layouts, or a part of it, against one process (make test-dist)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from tests.dist.layouts import LAYOUTS, Asked, Case, check, check_bf16, compare, compare_bf16

pytestmark = pytest.mark.dist_full

LOOPS = (1, 2, 3, 4)
VARIANTS = list(product(("none", "full"), (True, False)))
"""recompute, isolate"""


def case(layout: str, loops: int, recompute: str, isolate: bool, kind: str = "") -> Case:
    _, layers, parallel = LAYOUTS[layout]
    return Case(
        f"{kind}{layout} r{loops} {recompute} {'packed' if isolate else 'rows'}",
        dict(num_loops=loops, num_layers=layers),
        parallel | dict(recompute=recompute),
        isolate,
    )


FP32 = {
    world: [
        case(layout, loops, *variant)
        for layout, loops, variant in product(LAYOUTS, LOOPS, VARIANTS)
        if LAYOUTS[layout][0] == world
    ]
    for world in (2, 4)
}
# Every layout and every number of loops meet each variant once.
BF16 = {
    world: [
        case(layout, loops, *VARIANTS[(index + loops) % len(VARIANTS)], kind="bf16 ")
        for (index, layout), loops in product(enumerate(LAYOUTS), LOOPS)
        if LAYOUTS[layout][0] == world
    ]
    for world in (2, 4)
}


def run(cases: dict[int, list[Case]], asked: Asked, how: Callable[..., Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for world, of_it in cases.items():
        if mine := asked(of_it):
            out |= how(world, mine)
    return out


@pytest.fixture(scope="module")
def fp32(ranks: Any, asked: Asked) -> dict[str, Any]:
    return run(FP32, asked, compare)


@pytest.fixture(scope="module")
def bf16(ranks: Any, asked: Asked) -> dict[str, Any]:
    return run(BF16, asked, compare_bf16)


@pytest.mark.parametrize("name", [c.name for c in FP32[2] + FP32[4]])
def test_layout_equals_one_process(fp32: dict[str, Any], name: str) -> None:
    check(fp32[name])


@pytest.mark.parametrize("name", [c.name for c in BF16[2] + BF16[4]])
def test_layout_changes_bf16_no_more_than_bf16_does(bf16: dict[str, Any], name: str) -> None:
    check_bf16(bf16[name])
