"""Tokens per second and MFU against numbers worked out by hand."""

from __future__ import annotations

import pytest

from loopcoder.config.compose import compose
from loopcoder.config.schema import HardwareConfig, Precision
from loopcoder.errors import InputError
from loopcoder.metrics.throughput import Throughput, peak_flops

AUTO = HardwareConfig()


def test_measure_by_hand() -> None:
    # 8 GPUs of 1000 TFLOP/s; 80,000 tokens in 2 s are 40,000/s; at 100 GFLOP per token 4e15 of
    # 8e15.
    throughput = Throughput(100e9, 120e9, 1000e12, 8)
    assert throughput.measure(80_000, 2.0) == {
        "tokens_per_s": 40_000.0,
        "tokens_per_s_per_rank": 5_000.0,
        "mfu_causal": pytest.approx(0.5, rel=1e-15),
        "mfu_full": pytest.approx(0.6, rel=1e-15),
    }


def test_measure_7b_two_loops_on_one_h100() -> None:
    # 91.38 GFLOP per token (7B, R = 2, 8k, causal): at 4331.4 tokens/s 40% of 989.5 TFLOP/s.
    fields = Throughput(91.38e9, 91.38e9, 989.5e12, 1).measure(43_314, 10.0)
    assert fields["mfu_causal"] == pytest.approx(0.4, rel=1e-4)


def test_measure_without_a_peak_has_no_mfu() -> None:
    fields = Throughput(1e9, 1e9, None, 2).measure(100, 1.0)
    assert fields == {"tokens_per_s": 100.0, "tokens_per_s_per_rank": 50.0}


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_measure_needs_time(seconds: float) -> None:
    with pytest.raises(ValueError, match="positive time"):
        Throughput(1e9, 1e9, 1e12, 1).measure(100, seconds)


@pytest.mark.parametrize(
    ("name", "bf16", "fp8"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5e12, 1979e12),
        ("NVIDIA H100 PCIe", 756e12, 1513e12),
        ("NVIDIA H100 NVL", 835.5e12, 1670.5e12),
        ("NVIDIA H200", 989.5e12, 1979e12),
        ("NVIDIA H20", 148e12, 296e12),
        ("NVIDIA GH200 480GB", 989.5e12, 1979e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, None),
        ("NVIDIA A10", 125e12, None),
        ("NVIDIA B200", 2250e12, 4500e12),
        ("NVIDIA GB200", 2500e12, 5000e12),
        ("NVIDIA L40", None, None),
        ("NVIDIA RTX A1000", None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
    ],
)
def test_peak_by_gpu_name(name: str, bf16: float | None, fp8: float | None) -> None:
    assert peak_flops(AUTO, name, "bf16") == bf16
    for recipe in ("fp8_tensorwise", "fp8_delayed", "fp8_blockwise"):
        assert peak_flops(AUTO, name, recipe) == fp8


def test_override_wins_for_its_precision_only() -> None:
    hardware = HardwareConfig(peak_tflops_bf16=500.0)
    assert peak_flops(hardware, "NVIDIA H100 80GB HBM3", "bf16") == 500e12
    assert peak_flops(hardware, "NVIDIA H100 80GB HBM3", "fp8_delayed") == 1979e12
    assert peak_flops(hardware, "NVIDIA H100 80GB HBM3", "fp32") == pytest.approx(66.9e12)
    assert peak_flops(hardware, "unknown GPU", "bf16") == 500e12
    assert peak_flops(hardware, None, "fp32") == 500e12


@pytest.mark.parametrize(
    ("preset", "bf16", "fp8"),
    [("a100", 312e12, None), ("h100", 989.5e12, 1979e12), ("h200", 989.5e12, 1979e12)],
)
def test_presets(preset: str, bf16: float, fp8: float | None) -> None:
    """On a machine without that GPU too."""
    hardware = compose([f"hardware={preset}"]).hardware
    assert peak_flops(hardware, None, "bf16") == bf16
    assert peak_flops(hardware, None, "fp8_tensorwise") == fp8


def test_hardware_name() -> None:
    assert peak_flops(HardwareConfig(name="h100_pcie"), None, "bf16") == 756e12
    assert peak_flops(HardwareConfig(name="my_gpu", peak_tflops_bf16=100.0), "x", "bf16") == 100e12
    with pytest.raises(InputError, match=r"hardware\.name=my_gpu is not in the table"):
        peak_flops(HardwareConfig(name="my_gpu"), "NVIDIA H200", "bf16")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cpu_has_no_peak_unless_it_is_given(precision: Precision) -> None:
    for hardware in (AUTO, HardwareConfig(name="cpu")):
        assert peak_flops(hardware, None, precision) is None
    given = HardwareConfig(name="cpu", peak_tflops_bf16=0.2)
    assert peak_flops(given, None, precision) == 0.2e12
