"""Every kernel of a step ends in the row of what it does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.ops.kernel_names import kernels_of_sources

OURS = {"window_": "gated window", "gate_": "gate and loop input", "loop_": "gate and loop input"}
OF_A_STEP = [name for name in kernels_of_sources() if not name.startswith("decode_")]
OTHERS = {
    "void cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1": (
        "attention"
    ),
    "nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NTN": "matrix products",
    "_adamw_kernel": "optimizer and gradient norm",
    "void transformer_engine::normalization::rmsnorm_fwd_general_kernel<...>(...)": "RMSNorm",
    "void transformer_engine::fused_rope_forward_kernel<__nv_bfloat16>(...)": "RoPE",
    "ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)": (
        "communication"
    ),
    "Memcpy DtoD (Device -> Device)": "copies and zeroing",
    "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda(...)>": (
        "copies and zeroing"
    ),
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>": (
        "other elementwise"
    ),
    # Inductor names its kernels by the operators in them, casts too: the gate without our kernels
    "triton_poi_fused__to_copy_add_mul_rsub_sigmoid_0": "other elementwise",
}


def as_profiled(name: str) -> str:
    return (
        f"void loopcoder::(anonymous namespace)::part::{name}<__nv_bfloat16, 128>(loopcoder::Args)"
    )


def profiler(names: list[str]) -> Any:
    """What torch.profiler gives for kernels that took 1, 2, 3 ... ms each step, and for a call on
    the CPU."""
    from step_breakdown import STEPS

    events = [
        SimpleNamespace(
            key=name,
            count=STEPS,
            device_time_total=1e3 * STEPS * ms,
            self_device_time_total=1e3 * STEPS * ms,
        )
        for ms, name in enumerate(names, 1)
    ]
    call = SimpleNamespace(
        key="cudaLaunchKernel", count=9, device_time_total=0.0, self_device_time_total=0.0
    )
    return SimpleNamespace(key_averages=lambda: [call, *events])


@pytest.mark.parametrize("name", OF_A_STEP)
def test_our_kernels_have_rows_of_their_own(name: str) -> None:
    from step_breakdown import row_of

    subject = next(row for prefix, row in OURS.items() if name.startswith(prefix))
    assert row_of(as_profiled(name)) == subject


@pytest.mark.parametrize("name", OTHERS)
def test_kernels_of_libraries_end_in_the_row_of_their_work(name: str) -> None:
    from step_breakdown import row_of

    assert row_of(name) == OTHERS[name]


def test_the_rows_of_a_profile_sum_to_the_step() -> None:
    from step_breakdown import IDLE, OTHER, durations, rows_of

    names = [as_profiled(name) for name in OF_A_STEP]
    kernels = durations(profiler(names))
    assert set(kernels) == set(names)
    busy = sum(range(1, len(names) + 1))
    rows = rows_of(kernels, step_ms=busy + 5.0)
    assert set(rows) == {*OURS.values(), IDLE}
    assert OTHER not in rows
    assert rows[IDLE] == pytest.approx(5.0)
    assert sum(rows.values()) == pytest.approx(busy + 5.0)
