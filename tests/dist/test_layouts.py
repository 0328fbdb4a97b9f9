"""Data and tensor parallelism give the one-process loss, gradients and weights."""

from __future__ import annotations

import pytest

from tests.dist.launch import in_processes
from tests.dist.layouts import Case, differences, run_cases

OVERLAPS = dict(overlap_grad_reduce=True, overlap_param_gather=True)
CASES = [
    Case("dp2"),
    Case("dp2 r1", dict(num_loops=1)),
    Case("dp2 r3 rows", dict(num_loops=3), isolate=False),
    Case("dp2 overlaps r3", dict(num_loops=3), OVERLAPS),
    Case("dp2 overlaps r1", dict(num_loops=1), OVERLAPS),
    Case("dp2 plain optimizer", parallel=dict(distributed_optimizer=False)),
    Case("tp2", parallel=dict(tp=2)),
    Case("tp2 r1", dict(num_loops=1), dict(tp=2)),
    Case("tp2 r3 rows", dict(num_loops=3), dict(tp=2), isolate=False),
    Case("tp2 query gate", dict(gate="query"), dict(tp=2)),
    Case("tp2 own kv", dict(kv_sharing="own"), dict(tp=2)),
    Case("tp2 recompute", dict(num_loops=3), dict(tp=2, recompute="full")),
    Case("tp2 sp", dict(num_loops=3), dict(tp=2, sp=True)),
    Case("tp2 sp query gate", dict(gate="query"), dict(tp=2, sp=True)),
    Case("tp2 sp recompute rows", dict(), dict(tp=2, sp=True, recompute="full"), isolate=False),
]


@pytest.fixture(scope="module")
def results(ranks, request):
    import random

    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    spread = in_processes(2, run_cases, CASES, seed)[0]
    alone = run_cases(0, [case.alone() for case in CASES], seed)
    return {c.name: (seed, differences(a, b)) for c, a, b in zip(CASES, spread, alone, strict=True)}


@pytest.mark.dist
@pytest.mark.parametrize("name", [c.name for c in CASES])
def test_two_processes_equal_one(results, name):
    seed, worst = results[name]
    assert worst["loss"] <= 1e-5, (seed, worst)
    assert worst["grad_norm"] <= 1e-5, (seed, worst)
    assert worst["gradients"] <= 1e-5, (seed, worst)
    # Adam turns rounding noise of a near-zero gradient into a step of the size of the rate.
    assert worst["weights"] <= 2e-4, (seed, worst)


@pytest.mark.dist
def test_bf16_trains_as_far_from_fp32_in_two_processes_as_in_one(ranks, seed):
    layouts = [dict(), dict(tp=2), dict(tp=2, sp=True)]
    cases = [Case(str(p), parallel=p, precision="bf16") for p in layouts]
    spread = in_processes(2, run_cases, cases, seed)[0]
    fp32, bf16 = run_cases(0, [Case("fp32"), Case("bf16", precision="bf16")], seed)
    alone = differences(bf16, fp32)
    for case, result in zip(cases, spread, strict=True):
        worst = differences(result, fp32)
        for kind in ("loss", "grad_norm", "gradients"):
            assert worst[kind] <= 2 * alone[kind] + 1e-3, (case.name, kind, worst, alone)
