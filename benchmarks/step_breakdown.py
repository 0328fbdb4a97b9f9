"""Where the time of a training step goes, beside the limits that the same GPU shows in this run.

    python benchmarks/step_breakdown.py --loops 2 --layers 4 --precision bf16

Kernels of some profiled steps are sorted into rows by name; what the GPU idles is a row as well, so
that the rows sum to the step. The profiler itself costs a little: the step without it is printed
beside.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections import defaultdict
from typing import Any

ROWS = (
    ("gated window", r"loopcoder::.*window_"),
    ("gate and loop input", r"loopcoder::"),
    ("attention", r"fmha|flash|cudnn.*(sdpa|attn|attention)|sdpa"),
    ("optimizer and gradient norm", r"adam|l2norm|lpnorm"),
    ("FP8 quantisation", r"quantize|cast_transpose|amax|compute_scale|block_scaled|fp8.*cast"),
    ("matrix products", r"gemm|nvjet|cutlass|xmma|splitk|cublas"),
    ("RMSNorm", r"rmsnorm|layernorm|_norm_"),
    ("RoPE", r"rope|rotary"),
    ("SwiGLU", r"swiglu|silu|geglu"),
    ("cross-entropy", r"cross_entropy|softmax|online"),
    ("communication", r"nccl"),
    ("copies and zeroing", r"memset|memcpy|(?<!__to_)copy|fill"),  # not casts fused into others
)
OTHER, IDLE = "other elementwise", "GPU idle"
STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--loops", type=int, default=2)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--dense", action="store_true", help="megatron-core's dense model instead")
    parser.add_argument("--kernels", type=int, default=0, help="also list this many kernels")
    arguments = parser.parse_args()

    import logging
    import warnings

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import torch
    from step import dense, looped

    from loopcoder.config.schema import ParallelConfig
    from loopcoder.parallel import mcore

    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    mcore.start_processes()
    ranks = mcore.initialise(ParallelConfig(), seed=1)
    depth = arguments.loops * arguments.layers
    if arguments.dense:
        step = dense(depth, arguments.precision, ranks)
    else:
        step = looped(
            arguments.loops, arguments.layers, arguments.precision, arguments.packed, ranks
        )
    for _ in range(4):
        step()
    plain = timed(step)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        profiled = timed(step)
    kernels = durations(profiler)
    rows = rows_of(kernels, profiled)
    what = f"dense {depth}" if arguments.dense else f"R={arguments.loops} L={arguments.layers}"
    print(f"\n{what}, {arguments.precision}, {torch.cuda.get_device_name()}")
    print(f"step {plain:.1f} ms, {profiled:.1f} ms with the profiler; {limits()}\n")
    print("| part | ms | share |\n| --- | --- | --- |")
    for name, ms in sorted(rows.items(), key=lambda item: -item[1]):
        print(f"| {name} | {ms:.1f} | {ms / profiled:.1%} |")
    for name, (count, ms) in sorted(kernels.items(), key=lambda k: -k[1][1])[: arguments.kernels]:
        print(f"{ms:8.2f} ms {count:6.0f} x  [{row_of(name)}] {name[:150]}")
    mcore.shutdown()


def timed(step: Any) -> float:
    """Return the milliseconds of a step, the mean over some."""
    import torch

    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / STEPS * 1e3


def durations(profiler: Any) -> dict[str, tuple[float, float]]:
    """Return calls and milliseconds of a step by kernel."""
    out: dict[str, tuple[float, float]] = {}
    for event in profiler.key_averages():
        if event.device_time_total > 0:
            ms = event.self_device_time_total / STEPS / 1e3
            out[event.key] = (event.count / STEPS, ms)
    return out


def rows_of(kernels: dict[str, tuple[float, float]], step_ms: float) -> dict[str, float]:
    """Return milliseconds by row, which sum to a step."""
    rows: dict[str, float] = defaultdict(float)
    for name, (_, ms) in kernels.items():
        rows[row_of(name)] += ms
    rows[IDLE] = step_ms - sum(rows.values())
    return rows


def row_of(kernel: str) -> str:
    return next((row for row, name in ROWS if re.search(name, kernel, re.IGNORECASE)), OTHER)


def limits() -> str:
    """Measure the rate of the largest matrix product and of a copy."""
    import torch

    a = torch.randn(8192, 5120, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(55296, 5120, device="cuda", dtype=torch.bfloat16)
    x = torch.empty(2**30, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)
    for _ in range(3):
        torch.mm(a, b.T)
        y.copy_(x)
    product = timed(lambda: [torch.mm(a, b.T) for _ in range(10)]) / 10
    copy = timed(lambda: [y.copy_(x) for _ in range(10)]) / 10
    tflops = 2 * 8192 * 5120 * 55296 / product / 1e9
    return f"bf16 product {tflops:.0f} TFLOP/s, copy {2 * 2**31 / copy / 1e9:.2f} TB/s"


if __name__ == "__main__":
    main()
