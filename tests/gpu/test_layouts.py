"""Layouts over several GPUs train what one GPU trains, in bf16 through Transformer Engine and NCCL.

The reference is one process with all loops in one graph. A layout may differ from it by what it
differs from the plain PyTorch layers in fp32, on the same weights and data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.dist.launch import in_processes
from tests.dist.layouts import LAYOUTS, Case, check_bf16, fresh_seed, run_cases
from tests.gpu.test_transformer_engine import WIDE

pytestmark = pytest.mark.gpu

CASES = {
    f"{name} r{loops} {recompute} {kernels}": (
        world,
        Case(
            f"{name} r{loops} {recompute} {kernels}",
            WIDE
            | dict(num_loops=loops, num_layers=layers, layer_spec="te", window=16, kernels=kernels),
            parallel | dict(recompute=recompute),
            precision="bf16",
        ),
    )
    for name, (world, layers, parallel) in LAYOUTS.items()
    for loops, recompute, kernels in (
        (1, "none", "stock"),
        (2, "none", "stock"),
        (2, "none", "cuda"),
        (3, "full", "cuda"),
    )
    if world <= torch.cuda.device_count()
}


@pytest.fixture(scope="module")
def results(ranks: Any) -> dict[str, Any]:
    seed, out = fresh_seed(), {}
    for world in {world for world, _ in CASES.values()}:
        cases = [replace(case, seed=seed) for size, case in CASES.values() if size == world]
        spread = in_processes(world, run_cases, cases)[0]
        alone = [case.alone() for case in cases]
        bf16 = run_cases(0, alone)
        exact = [
            replace(
                case, precision="fp32", model=case.model | dict(layer_spec="torch", kernels="stock")
            )
            for case in alone
        ]
        fp32 = run_cases(0, exact)
        for result in zip(cases, spread, bf16, fp32, strict=True):
            out[result[0].name] = (seed, *result)
    return out


@pytest.mark.parametrize("name", CASES)
def test_layout_changes_bf16_no_more_than_bf16_does(results: dict[str, Any], name: str) -> None:
    check_bf16(results[name], same_bits=False)
