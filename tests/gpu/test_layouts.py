"""Layouts over several GPUs train what one GPU trains, in bf16 through Transformer Engine and NCCL.

The reference is one process with all loops in one graph. A layout may differ from it by what it
differs from the plain PyTorch layers in fp32, on the same weights and data. With eight GPUs the
layouts of four run twice, side by side, as data-parallel halves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.dist.conftest import asked
from tests.dist.launch import in_processes
from tests.dist.layouts import (
    LAYOUTS,
    OVERLAPS,
    Asked,
    Case,
    check_bf16,
    fresh_seed,
    run_cases,
)
from tests.gpu.test_transformer_engine import WIDE

__all__ = ["asked"]  # a fixture

pytestmark = pytest.mark.gpu

OF_GPUS: dict[str, tuple[int, int, dict[str, Any]]] = LAYOUTS | {
    "dp2 tp2 sp overlaps": (4, 2, dict(tp=2, sp=True) | OVERLAPS)
}
"""GPUs, layers, parallel."""
OF_GPUS |= {
    f"twice {name}": (8, layers, parallel | OVERLAPS)
    for name, (world, layers, parallel) in OF_GPUS.items()
    if world == 4
}
CASES = {
    f"{name} r{loops} {recompute} {kernels}": (
        world,
        Case(
            f"{name} r{loops} {recompute} {kernels}",
            WIDE
            | dict(num_loops=loops, num_layers=layers, layer_spec="te", window=16, kernels=kernels),
            parallel | dict(recompute=recompute),
            precision="bf16",
            rows=max(8, 2 * world),
        ),
    )
    for name, (world, layers, parallel) in OF_GPUS.items()
    for loops, recompute, kernels in (
        (1, "none", "stock"),
        (2, "none", "stock"),
        (2, "none", "cuda"),
        (3, "full", "cuda"),
    )
}


@pytest.fixture(scope="module")
def results(ranks: Any, asked: Asked) -> dict[str, Any]:
    """Train what this run has tests of and GPUs for."""
    seed, out = fresh_seed(), {}
    gpus = torch.cuda.device_count()
    for world in sorted({world for world, _ in CASES.values() if world <= gpus}):
        cases = asked([replace(case, seed=seed) for size, case in CASES.values() if size == world])
        if not cases:
            continue
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
    world, _ = CASES[name]
    if name not in results:
        pytest.skip(f"needs {world} GPUs, here are {torch.cuda.device_count()}")
    check_bf16(results[name], same_bits=False)
