"""Pipeline layouts give the one-process loss, gradients and weights (a fast part of the matrix)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.dist.layouts import Asked, Case, check, compare

DEEP = dict(num_layers=5)
TWO = [
    Case("pp2 r2", parallel=dict(pp=2), masked=True),
    Case("pp2 r3 rows", dict(num_loops=3), dict(pp=2), isolate=False),
    Case(
        "pp2 uneven r3 selective",
        DEEP | dict(num_loops=3),
        dict(pp=2, recompute="selective"),
        masked=True,
    ),
    Case("pp2 two chunks r1", DEEP | dict(num_loops=1), dict(pp=2, chunks_per_loop=2), masked=True),
]
MORE = [
    Case("pp2 r1", dict(num_loops=1), dict(pp=2)),
    Case("pp2 r4 recompute", dict(num_loops=4), dict(pp=2, recompute="full")),
    Case("pp2 uneven r2", DEEP, dict(pp=2)),
    Case("pp2 two chunks r2", DEEP, dict(pp=2, chunks_per_loop=2)),
    Case("pp2 own kv", dict(num_loops=3, kv_sharing="own"), dict(pp=2)),
    Case("pp2 query gate", dict(num_loops=2, gate="query"), dict(pp=2)),
    Case("pp2 norm once", dict(num_loops=3, norm_per_loop=False), dict(pp=2)),
]


@pytest.fixture(scope="module")
def two(ranks: Any, asked: Asked) -> dict[str, Any]:
    return compare(2, asked(TWO))


@pytest.fixture(scope="module")
def more(ranks: Any, asked: Asked) -> dict[str, Any]:
    return compare(2, asked(MORE))


@pytest.mark.dist_full
@pytest.mark.dist
@pytest.mark.parametrize("name", [c.name for c in TWO])
def test_two_stages_equal_one_process(two: dict[str, Any], name: str) -> None:
    check(two[name])


@pytest.mark.dist_full
@pytest.mark.parametrize("name", [c.name for c in MORE])
def test_two_stages_equal_one_process_in_more_cases(more: dict[str, Any], name: str) -> None:
    check(more[name])
