"""What is measured with torch: matrix products in bf16 and FP8, and all-reduces."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from loopcoder.config.schema import HardwareConfig
from loopcoder.doctor import thresholds as t
from loopcoder.doctor.findings import Seen
from loopcoder.metrics.throughput import link_bytes_per_s, peak_flops
from loopcoder.network import is_loopback
from loopcoder.parallel.handshake import GLOO_INTERFACE

_WARM_UP, _ROUNDS = 2, 5


def bf16_product(seen: Seen, device: torch.device, hardware: HardwareConfig, side: int) -> None:
    """Add how fast a device multiplies matrices in bf16, beside its data sheet.

    Args:
        side: Rows and columns of the matrices.
    """
    check = f"{_name(device)} bf16"
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    flops = 2 * side**3 / _seconds(lambda: left @ right, device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    peak = peak_flops(hardware, gpu, "bf16")
    add_product(seen, check, flops, peak)


def add_product(seen: Seen, check: str, flops: float, peak: float | None) -> None:
    """Judge the FLOP/s of a product by what the device could do at best."""
    fact = f"{flops / 1e12:,.1f} TFLOP/s"
    if peak is not None:
        fact += f" of {peak / 1e12:,.0f} on the data sheet"
    why = "another program uses the GPU, or its clocks are lowered; all ranks wait for the slowest"
    fix = "nvidia-smi; nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER"
    is_enough = peak is None or flops >= t.PEAK_SHARE * peak
    _judge(seen, check, fact, flops / 1e12, "TFLOP/s", is_enough, why, fix)


def fp8_product(seen: Seen, device: torch.device, side: int) -> None:
    """Add whether Transformer Engine multiplies in FP8 here, and how far that is from bf16."""
    check = f"{_name(device)} fp8"
    if torch.cuda.get_device_capability(device) < (8, 9):
        why, fix = "GPUs of compute capability 8.9 and later have FP8", "precision=bf16"
        seen.add(check, "note", "this GPU has no FP8", why, fix)
        return
    try:
        import transformer_engine.pytorch as te

        layer = te.Linear(side, side, bias=False, params_dtype=torch.bfloat16, device=device)
        given = torch.randn(side, side, device=device, dtype=torch.bfloat16)
        with torch.no_grad():
            plain = layer(given)
            for _ in range(3):  # scales follow what was seen before
                with te.fp8_autocast(enabled=True):
                    found = layer(given)
        error = ((found.float() - plain.float()).norm() / plain.float().norm()).item()
    except Exception as fault:  # of its build, its CUDA libraries or its kernels
        first = str(fault).strip().partition("\n")[0]
        why = "the FP8 presets and layers of Transformer Engine need it"
        fix = "install Transformer Engine anew for this torch and CUDA (pip install '.[te]'), or "
        fix += "precision=bf16 model.layer_spec=torch"
        seen.add(check, "error", f"{type(fault).__name__}: {first}", why, fix)
        return
    fact = f"a product differs from bf16 by {error:.1%}"
    if error <= t.FP8_ERROR:
        seen.ok(check, fact, error, "relative error")
        return
    why = "three bits of mantissa give a few percent"
    fix = "precision=bf16; another version of Transformer Engine"
    seen.add(check, "error", fact, why, fix, error, "relative error")


def all_reduce(
    store: Any, rank: int, size: int, device: torch.device, limit_s: float, *, inside: bool
) -> tuple[float, bool]:
    """Return bus bandwidth in bytes per second of an all-reduce, and whether its sum is right.

    Bus bandwidth is 2 (n - 1) / n times bytes per second: what each link carries, whatever the
    number of ranks n (as nccl-tests has it). All ranks of the group must call it.

    Args:
        store: Of the group alone.
        device: Of this rank; gloo for a CPU, NCCL for a GPU.
        inside: All ranks are on this machine: gloo then needs no network.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    options: dict[str, Any] = {"store": store, "rank": rank, "world_size": size}
    options["timeout"] = timedelta(seconds=max(1.0, limit_s))
    if backend == "nccl":
        options["device_id"] = device
    with _gloo_on_loopback() if inside else nullcontext():
        dist.init_process_group(backend, **options)
    try:
        count = t.REDUCED_BYTES[backend] // 4
        ones = torch.ones(count, device=device)
        dist.all_reduce(ones)
        right = bool((ones == size).all().item())
        ones.zero_()  # whose sum stays finite
        seconds = _seconds(lambda: dist.all_reduce(ones), device)
        return 2 * (size - 1) / size * count * 4 / seconds, right
    finally:
        dist.destroy_process_group()


def add_inside(
    seen: Seen, rate: float, right: bool, size: int, hardware: HardwareConfig, gpu: str | None
) -> None:
    """Judge an all-reduce between the GPUs of a machine by the links that they have."""
    check, expected = "all-reduce inside", link_bytes_per_s(hardware, gpu) if gpu else None
    fact = f"{rate / 1e9:,.1f} GB/s among {size} ranks"
    if not _sum_is_right(seen, check, fact, right):
        return
    if expected is not None:
        fact += f", links of {expected / 1e9:,.0f} GB/s"
    why = "traffic goes over PCIe or the host's memory, or links are down"
    fix = "nvidia-smi topo -m; nvidia-smi nvlink -s; NCCL_DEBUG=INFO shows the way that is taken"
    is_enough = expected is None or rate >= t.LINK_SHARE * expected
    _judge(seen, check, fact, rate / 1e9, "GB/s", is_enough, why, fix)


def add_between(seen: Seen, rate: float, right: bool, nodes: int, gpus: bool) -> None:
    """Judge an all-reduce over all nodes by the RDMA cards of this machine."""
    check, expected = "all-reduce between nodes", rdma_bytes_per_s() if gpus else None
    fact = f"{rate / 1e9:,.2f} GB/s over {nodes} nodes"
    if not _sum_is_right(seen, check, fact, right):
        return
    if expected is not None:
        fact += f", RDMA cards of {expected / 1e9:,.0f} GB/s per node"
    why = "NCCL does not use the RDMA cards, or not all of them"
    fix = "NCCL_DEBUG=INFO names the network that is taken (NET/IB, not NET/Socket); NCCL_IB_HCA, "
    fix += "GPUDirect RDMA (modprobe nvidia-peermem), ulimit -l unlimited"
    is_enough = expected is None or rate >= t.NETWORK_SHARE * expected
    _judge(seen, check, fact, rate / 1e9, "GB/s", is_enough, why, fix)


def _judge(
    seen: Seen,
    check: str,
    fact: str,
    value: float,
    unit: str,
    is_enough: bool,
    why: str,
    fix: str,
) -> None:
    """Add what was measured, as a warning where it is not enough."""
    if is_enough:
        seen.ok(check, fact, value, unit)
    else:
        seen.add(check, "warning", fact, why, fix, value, unit)


def rdma_bytes_per_s(root: Path = Path("/sys/class/infiniband")) -> float | None:
    """Return the rates of all active ports of RDMA cards together; None: there are none."""
    total = 0.0
    for port in root.glob("*/ports/*"):
        try:
            active = "ACTIVE" in (port / "state").read_text()
            rate = re.match(r"[\d.]+", (port / "rate").read_text())
        except OSError:
            continue
        if active and rate is not None:  # "400 Gb/sec (4X NDR)"
            total += float(rate[0]) * 1e9 / 8
    return total or None


def _sum_is_right(seen: Seen, check: str, fact: str, right: bool) -> bool:
    if not right:
        why = "ranks computed another sum than the number of their ones"
        fix = (
            "leave out nodes one by one until it is right; NCCL_P2P_DISABLE=1 tells whether it is "
        )
        seen.add(check, "error", f"{fact}, and the sum is wrong", why, fix + "the GPUs' links")
    return right


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Return how long a piece of work takes, after some rounds that do not count."""
    for _ in range(_WARM_UP):
        work()
    _wait(device)
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        work()
    _wait(device)
    return (time.perf_counter() - began) / _ROUNDS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: torch.device) -> str:
    return f"GPU {device.index}" if device.type == "cuda" else "cpu"


@contextmanager
def _gloo_on_loopback() -> Iterator[None]:
    """Let gloo connect the ranks of a machine although its name may not resolve."""
    loopback = [n for n, a in psutil.net_if_addrs().items() if any(_is_loopback(x) for x in a)]
    before = os.environ.get(GLOO_INTERFACE)
    if loopback:
        os.environ[GLOO_INTERFACE] = loopback[0]
    try:
        yield
    finally:
        os.environ.pop(GLOO_INTERFACE, None)
        if before is not None:
            os.environ[GLOO_INTERFACE] = before


def _is_loopback(address: Any) -> bool:
    try:
        return is_loopback(address.address)
    except ValueError:  # of a card, not of the internet
        return False
