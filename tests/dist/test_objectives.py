"""Objectives of several loops, and loops drawn per step, in layouts: losses, every gradient and the
weights are those of one process and of the unrolled float64 reference.

That one process is right by itself is in tests/model/test_objective.py; a few layouts are in the
fast set, in test_layouts.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.dist.layouts import OVERLAPS, Asked, Case, check, check_bf16, compare, compare_bf16

pytestmark = pytest.mark.dist_full


WEIGHTS = dict(loop_weights=[0.5, 0, 2.0])
EXIT = dict(exit=True, exit_entropy=0.3)
DRAWN = dict(loop_count="uniform")
R3 = dict(num_loops=3)
SP = dict(tp=2, sp=True)
MORE = [
    Case("tp2 sp exit", R3, SP, objective=EXIT),
    Case("pp2 exit", R3, dict(pp=2), objective=EXIT),
    Case("dp2 overlaps drawn", R3, OVERLAPS, objective=DRAWN, loops=(1, 3, 1)),
    Case("pp2 two chunks weights", R3 | dict(num_layers=4), dict(pp=2, chunks_per_loop=2),
         objective=WEIGHTS),
    Case("tp2 exit rows", R3, dict(tp=2), isolate=False, objective=EXIT),
    Case("tp2 sp weights", R3, SP, objective=WEIGHTS),
    Case("tp2 sp exit recompute", R3, SP | dict(recompute="full"), objective=EXIT),
    Case("tp2 sp drawn", R3, SP, objective=DRAWN, loops=(1, 2, 3)),
    Case("tp2 sp exit drawn", R3, SP, objective=EXIT | DRAWN, loops=(2, 1, 3)),
    Case("dp2 overlaps exit", R3, OVERLAPS, objective=EXIT),
    Case("dp2 overlaps weights norm once", R3 | dict(norm_per_loop=False), OVERLAPS,
         objective=WEIGHTS),
    Case("dp2 overlaps exit drawn recompute", R3, OVERLAPS | dict(recompute="full"),
         objective=EXIT | DRAWN, loops=(1, 3, 1)),
    Case("dp2 plain optimizer drawn", R3, dict(distributed_optimizer=False), objective=DRAWN,
         loops=(1, 1, 2)),
    Case("pp2 weights", R3, dict(pp=2), isolate=False, objective=WEIGHTS),
    Case("pp2 exit norm once", R3 | dict(norm_per_loop=False), dict(pp=2), objective=EXIT),
    Case("pp2 exit recompute", dict(num_loops=2), dict(pp=2, recompute="full"), objective=EXIT),
    Case("pp2 weights drawn", R3, dict(pp=2), objective=dict(loop_weights=[1, 1, 2]) | DRAWN,
         loops=(2, 1, 3)),
    Case("pp2 two chunks exit drawn", R3 | dict(num_layers=4), dict(pp=2, chunks_per_loop=2),
         objective=EXIT | DRAWN, loops=(1, 3, 1)),
]  # fmt: skip
FOUR = [
    Case("tp2 sp pp2 exit", R3, SP | dict(pp=2), objective=EXIT),
    Case("tp2 sp pp2 exit drawn", R3, SP | dict(pp=2), objective=EXIT | DRAWN, loops=(1, 3, 2)),
    Case("dp2 pp2 overlaps weights", R3, dict(pp=2) | OVERLAPS, objective=WEIGHTS),
    Case("dp2 pp2 overlaps drawn", R3, dict(pp=2) | OVERLAPS, objective=DRAWN, loops=(3, 1, 3)),
    Case("dp2 pp2 overlaps exit drawn", R3, dict(pp=2) | OVERLAPS, objective=EXIT | DRAWN,
         loops=(1, 3, 1)),
]  # fmt: skip
BF16 = [
    Case("bf16 pp2 weights", R3, dict(pp=2), objective=WEIGHTS),
    Case("bf16 pp2 exit", R3, dict(pp=2), objective=EXIT),
    Case("bf16 dp2 overlaps exit drawn", R3, OVERLAPS, objective=EXIT | DRAWN, loops=(3, 1, 3)),
    Case("bf16 tp2 sp exit", R3, SP, objective=EXIT),
]  # fmt: skip


@pytest.fixture(scope="module")
def more(ranks: Any, asked: Asked) -> dict[str, Any]:
    return compare(2, asked(MORE))


@pytest.fixture(scope="module")
def four(ranks: Any, asked: Asked) -> dict[str, Any]:
    return compare(4, asked(FOUR))


@pytest.fixture(scope="module")
def bf16(ranks: Any, asked: Asked) -> dict[str, Any]:
    return compare_bf16(2, asked(BF16))


@pytest.mark.parametrize("name", [c.name for c in MORE])
def test_two_processes_equal_one_in_more_cases(more: dict[str, Any], name: str) -> None:
    check(more[name])


@pytest.mark.parametrize("name", [c.name for c in FOUR])
def test_four_processes_equal_one(four: dict[str, Any], name: str) -> None:
    check(four[name])


@pytest.mark.parametrize("name", [c.name for c in BF16])
def test_two_processes_change_bf16_no_more_than_bf16_does(bf16: dict[str, Any], name: str) -> None:
    check_bf16(bf16[name])
