"""Tokens per second and MFU: the share of the devices' peak that went into useful FLOPs.

FLOPs per token come from `model/flops.py`. Both conventions count the forward and backward products
of the R*L executed layers and of the head, three times the forward; recomputed activations, norms,
softmax and the optimizer do not count. They differ in the S x S attention only:

- causal: the half of it that a causal mask leaves, as a flash attention kernel computes it; the
  smaller of the two.
- full: all S keys for every query, as if unmasked; the convention of PaLM (appendix B), for
  comparison with numbers from there.

The 65-key window of later loops counts as 65 keys per query in both.

Packed documents isolated from each other have less attention than either: the numbers are then
upper bounds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

from loopcoder.config.compose import conf_dir
from loopcoder.config.schema import HardwareConfig, Precision
from loopcoder.errors import InputError

_PEAKS = "hardware/_peaks.yaml"
"""The table of peaks, among the presets."""
_LINKS = "hardware/_links.yaml"
"""That of links between the GPUs of a machine."""


@dataclass(frozen=True)
class Throughput:
    """Turn tokens and seconds into the fields of a record."""

    flops_per_token_causal: float
    """Training FLOPs per token, attention counted under its causal mask."""
    flops_per_token_full: float
    """Training FLOPs per token, attention counted as if unmasked."""
    peak_flops: float | None
    """FLOP/s of one device at best; None where that is not known: no MFU."""
    world_size: int
    """Devices (ranks) that share the work."""

    def measure(self, tokens: int, seconds: float) -> dict[str, float]:
        """Return tokens_per_s, tokens_per_s_per_rank and, if the peak is known, both MFUs (0..1).

        `tokens` are those of all ranks in `seconds` of wall time. Raises ValueError unless seconds
        > 0.
        """
        if seconds <= 0:
            raise ValueError(f"tokens/s needs a positive time, got {seconds} s")
        tokens_per_s = tokens / seconds
        fields = {
            "tokens_per_s": tokens_per_s,
            "tokens_per_s_per_rank": tokens_per_s / self.world_size,
        }
        if self.peak_flops is not None:
            peak = self.peak_flops * self.world_size
            fields["mfu_causal"] = tokens_per_s * self.flops_per_token_causal / peak
            fields["mfu_full"] = tokens_per_s * self.flops_per_token_full / peak
        return fields


def peak_flops(
    hardware: HardwareConfig, gpu_name: str | None, precision: Precision
) -> float | None:
    """Return the FLOP/s that one device could do at best; None for a CPU and an unknown GPU.

    In order: the override of HardwareConfig for the precision (fp8_* reads peak_tflops_fp8; bf16,
    and every precision on a CPU, peak_tflops_bf16); the table, by `hardware.name` or, with auto, by
    `gpu_name` (as torch.cuda.get_device_name returns it); without a GPU none: what other work
    leaves of a CPU is no peak.

    With FP8 the peak is that of FP8 products although attention and head run in bf16, so that MFU
    does not change its meaning with the share of FP8 layers. Raises InputError when `hardware.name`
    is none of the table's.
    """
    kind = "fp8" if precision.startswith("fp8") else precision
    on_cpu = hardware.name == "cpu" or (hardware.name == "auto" and gpu_name is None)
    override = {
        "fp8": hardware.peak_tflops_fp8,
        "bf16": hardware.peak_tflops_bf16,
        "fp32": hardware.peak_tflops_bf16 if on_cpu else None,
    }[kind]
    if override is not None:
        return override * 1e12
    if on_cpu:
        return None
    peaks = _table_row(_PEAKS, gpu_name if hardware.name == "auto" else hardware.name)
    if peaks is None:
        given = hardware.peak_tflops_bf16 is not None or hardware.peak_tflops_fp8 is not None
        if hardware.name != "auto" and not given:
            raise InputError.of(
                f"hardware.name={hardware.name} is not in the table of peaks",
                "MFU is a share of the device's peak FLOP/s",
                "set hardware.peak_tflops_bf16=X (dense, TFLOP/s), or hardware.name=auto",
            )
        return None
    return peaks[kind] * 1e12 if kind in peaks else None


def link_bytes_per_s(hardware: HardwareConfig, gpu_name: str | None) -> float | None:
    """Return the bytes per second that one device sends to its neighbours at best; None where that
    is not known. `hardware.name`, or with auto `gpu_name`, is looked up."""
    row = _table_row(_LINKS, gpu_name if hardware.name == "auto" else hardware.name)
    return None if row is None else row["gb_per_s"] * 1e9


def _table_row(table: str, name: str | None) -> dict[str, float] | None:
    words = set(re.split(r"[^a-z0-9]+", (name or "").lower()))
    if "mig" in words:  # a slice of the GPU, whose share of the peak the name does not say
        return None
    rows = yaml.safe_load((conf_dir() / table).read_text(encoding="utf-8"))
    return next((peaks for key, peaks in rows.items() if words.issuperset(key.split())), None)
