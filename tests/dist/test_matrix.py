"""The whole matrix of layouts, or a part of it, against one process (make test-dist)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from tests.dist.layouts import LAYOUTS, Case, check, check_bf16, compare, compare_bf16
from tests.parts import part_of

pytestmark = pytest.mark.dist_full

LOOPS = (1, 2, 3, 4)
VARIANTS = list(product(("none", "full"), (True, False)))
"""recompute, isolate"""


def case(layout: str, loops: int, recompute: str, isolate: bool) -> Case:
    _, layers, parallel = LAYOUTS[layout]
    return Case(
        f"{layout} r{loops} {recompute} {'packed' if isolate else 'rows'}",
        dict(num_loops=loops, num_layers=layers),
        parallel | dict(recompute=recompute),
        isolate,
    )


FP32 = part_of(
    {
        c.name: (LAYOUTS[layout][0], c)
        for layout, loops, variant in product(LAYOUTS, LOOPS, VARIANTS)
        for c in [case(layout, loops, *variant)]
    }
)
# Every layout and every number of loops meet each variant once.
BF16 = part_of(
    {
        c.name: (LAYOUTS[layout][0], c)
        for (index, layout), loops in product(enumerate(LAYOUTS), LOOPS)
        for c in [case(layout, loops, *VARIANTS[(index + loops) % len(VARIANTS)])]
    }
)


def run(cases: dict[str, tuple[int, Case]], how: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for world in {size for size, _ in cases.values()}:
        out |= how(world, [c for size, c in cases.values() if size == world])
    return out


@pytest.fixture(scope="module")
def fp32(ranks: Any) -> dict[str, Any]:
    return run(FP32, compare)


@pytest.fixture(scope="module")
def bf16(ranks: Any) -> dict[str, Any]:
    return run(BF16, compare_bf16)


@pytest.mark.parametrize("name", FP32)
def test_layout_equals_one_process(fp32: dict[str, Any], name: str) -> None:
    check(fp32[name])


@pytest.mark.parametrize("name", BF16)
def test_layout_changes_bf16_no_more_than_bf16_does(bf16: dict[str, Any], name: str) -> None:
    check_bf16(bf16[name])
