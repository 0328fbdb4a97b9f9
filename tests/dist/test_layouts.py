"""Data and tensor parallelism give the one-process loss, gradients and weights."""

from __future__ import annotations

from typing import Any

import pytest

from tests.dist.layouts import OVERLAPS, Asked, Case, check, check_bf16, compare, compare_bf16

RATES = dict(
    base_hidden_size=8,
    base_num_layers=1,
    embedding_lr_scale=3.0,
    head_lr_scale=2.0,
    vocabulary_warmup_steps=2,
)
# A learned gate weighs the losses of the loops, and steps run different numbers of them;
# tests/dist/test_objectives.py has more.
OBJECTIVE = dict(exit=True, exit_entropy=0.3, loop_count="uniform")
CASES = [
    Case(
        "tp2 sp exit drawn",
        dict(num_loops=3),
        dict(tp=2, sp=True),
        objective=OBJECTIVE,
        loops=(3, 1, 3),
        masked=True,
    ),
    Case("dp2"),
    Case("dp2 overlaps r3", dict(num_loops=3), OVERLAPS, masked=True),
    Case("dp2 plain optimizer", parallel=dict(distributed_optimizer=False)),
    Case("tp2 r3 rows", dict(num_loops=3), dict(tp=2), isolate=False),
    Case("tp2 query gate", dict(gate="query"), dict(tp=2), masked=True),
    Case("dp2 rates", dict(residual_scale=0.5), optim=RATES),
    Case("tp2 sp", dict(num_loops=3), dict(tp=2, sp=True), masked=True),
    Case("tp2 sp recompute rows", dict(), dict(tp=2, sp=True, recompute="full"), isolate=False),
]
MORE = [
    Case("dp2 r1", dict(num_loops=1)),
    Case("dp2 r3 rows", dict(num_loops=3), isolate=False),
    Case("dp2 overlaps r1", dict(num_loops=1), OVERLAPS),
    Case("tp2", parallel=dict(tp=2)),
    Case("tp2 r1", dict(num_loops=1), dict(tp=2)),
    Case("tp2 own kv", dict(kv_sharing="own"), dict(tp=2)),
    Case("tp2 sp rates", dict(residual_scale=0.5), dict(tp=2, sp=True), optim=RATES),
    Case("tp2 recompute", dict(num_loops=3), dict(tp=2, recompute="full")),
    Case("tp2 sp query gate", dict(gate="query"), dict(tp=2, sp=True)),
]


BF16 = [
    Case("bf16 dp2"),
    Case("bf16 tp2", parallel=dict(tp=2)),
    Case("bf16 tp2 sp", dict(num_loops=3), dict(tp=2, sp=True)),
    Case("bf16 dp2 overlaps", dict(num_loops=4), OVERLAPS),
    Case("bf16 pp2", dict(num_loops=4), dict(pp=2)),
]


@pytest.fixture(scope="module")
def fp32(ranks: Any, asked: Asked) -> dict[str, Any]:
    return compare(2, asked(CASES))


@pytest.fixture(scope="module")
def more(ranks: Any, asked: Asked) -> dict[str, Any]:
    return compare(2, asked(MORE))


@pytest.fixture(scope="module")
def bf16(ranks: Any, asked: Asked) -> dict[str, Any]:
    return compare_bf16(2, asked(BF16))


@pytest.mark.dist
@pytest.mark.parametrize("name", [c.name for c in CASES])
def test_two_processes_equal_one(fp32: dict[str, Any], name: str) -> None:
    check(fp32[name])


@pytest.mark.dist_full
@pytest.mark.parametrize("name", [c.name for c in MORE])
def test_two_processes_equal_one_in_more_cases(more: dict[str, Any], name: str) -> None:
    check(more[name])


@pytest.mark.dist_full
@pytest.mark.parametrize("name", [c.name for c in BF16])
def test_two_processes_change_bf16_no_more_than_bf16_does(bf16: dict[str, Any], name: str) -> None:
    check_bf16(bf16[name])
