"""The attention of a later loop: our kernels beside stock parts and beside one causal attention.

    python benchmarks/attention.py
    python benchmarks/attention.py --lengths 8192 --kernels    # also each kernel, and the gate

40 query and 8 key heads of 128, bf16, window 64, one sequence; gate logits are given. `causal` is
Transformer Engine's attention alone (cuDNN), `stock` two of them and a compiled gate, `ours` the
causal one inside `gated_attention`. Times are medians of alternating calls by CUDA events, the L2
cache flushed between them; `kernels` sums what the kernels of a call take, without gaps between
them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HEADS, KV_HEADS, HEAD_DIM, WINDOW, MEAN_DOCUMENT = 40, 8, 128, 64, 1024
WIDTH = HEADS * HEAD_DIM
ROUNDS, CALLS = 5, 12


@dataclass
class Case:
    """Inputs of one length, and the attentions over them."""

    seq: int
    gate: Tensor
    q: Tensor
    own: tuple[Tensor, Tensor]
    shared: tuple[Tensor, Tensor]
    d_out: Tensor
    start: Tensor | None
    full: Callable[..., Tensor]
    near: Callable[..., Tensor]

    def causal(self) -> tuple[Tensor, list[Tensor]]:
        return self.full(self.q, *self.shared), [self.q, *self.shared]

    def stock(self) -> tuple[Tensor, list[Tensor]]:
        far, near = self.full(self.q, *self.shared), self.near(self.q, *self.own)
        return compiled_gate(self.gate, far, near), self.inputs()

    def ours(self) -> tuple[Tensor, list[Tensor]]:
        from loopcoder.ops.kernels import gated_attention

        out = gated_attention(
            self.full, self.gate, self.q, *self.own, self.shared, self.start, WINDOW
        )
        return out, self.inputs()

    def inputs(self) -> list[Tensor]:
        return [self.gate, self.q, *self.own, *self.shared]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--kernels", action="store_true", help="also every kernel of `ours`")
    arguments = parser.parse_args()

    import logging
    import warnings

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    from loopcoder.ops import kernels

    kernels.load()
    torch.manual_seed(torch.seed() % 2**32)
    copy_rate, product_rate = limits()
    print(
        f"\n{torch.cuda.get_device_name()}, bf16 product {product_rate / 1e12:.0f} TFLOP/s, "
        f"copy {copy_rate / 1e12:.2f} TB/s\n"
    )
    print("| tokens | documents | causal, forward + backward | stock | ours | kernels alone |")
    print("| --- | --- | --- | --- | --- | --- |")
    for seq in arguments.lengths:
        for packed in (False, True):
            print_row(make(seq, packed))
    if arguments.kernels:
        print_kernels(make(8192, False), copy_rate, product_rate)
        print_gate(8192, copy_rate)


def make(seq: int, packed: bool) -> Case:
    from transformer_engine.pytorch import DotProductAttention

    def draw(*shape: int) -> Tensor:
        x = torch.randn(seq, 1, *shape, device="cuda", dtype=torch.bfloat16)
        return x.requires_grad_()

    def attention(window: tuple[int, int]) -> Callable[..., Tensor]:
        module = DotProductAttention(
            HEADS,
            HEAD_DIM,
            num_gqa_groups=KV_HEADS,
            attention_dropout=0.0,
            qkv_format="thd" if packed else "sbhd",
            attn_mask_type="padding_causal" if packed else "causal",
            window_size=window,
        )
        if not packed:
            return lambda q, k, v: module(q, k, v).view(q.shape)
        return lambda q, k, v: module(
            q[:, 0],
            k[:, 0],
            v[:, 0],
            cu_seqlens_q=borders,
            cu_seqlens_kv=borders,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        ).view(q.shape)

    start = None
    if packed:
        is_first = torch.rand(seq) < 1 / MEAN_DOCUMENT
        is_first[0] = True
        first = is_first.nonzero().flatten()
        borders = torch.cat([first, torch.tensor([seq])]).int().cuda()
        longest = int((borders[1:] - borders[:-1]).max())
        start = torch.where(is_first, torch.arange(seq), 0).cummax(0).values[None].cuda()
    return Case(
        seq,
        draw(HEADS),
        draw(HEADS, HEAD_DIM),
        (draw(KV_HEADS, HEAD_DIM), draw(KV_HEADS, HEAD_DIM)),
        (draw(KV_HEADS, HEAD_DIM), draw(KV_HEADS, HEAD_DIM)),
        torch.randn(seq, 1, HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16),
        start,
        attention((-1, 0)),
        attention((WINDOW, 0)),
    )


def print_row(case: Case) -> None:
    names = ("causal", "stock", "ours")
    forward: dict[str, list[float]] = {name: [] for name in names}
    both: dict[str, list[float]] = {name: [] for name in names}
    alone: dict[str, list[float]] = {name: [] for name in names}
    attends = {name: getattr(case, name) for name in names}
    steps = {name: stepping(attend, case.d_out) for name, attend in attends.items()}
    events(steps)  # compiles, and warms the GPU up
    for _ in range(ROUNDS):
        for times, functions in ((forward, attends), (both, steps)):
            for name, milliseconds in events(functions).items():
                times[name] += milliseconds
        for name, step in steps.items():
            alone[name].append(sum(ms for _, ms in kernel_times(step).values()))
    cells = []
    for name in names:
        there, all_ = statistics.median(forward[name]), statistics.median(both[name])
        ratio = all_ / statistics.median(both["causal"])
        cell = f"{there:.3f} + {all_ - there:.3f} = {all_:.3f} ms"
        cells.append(cell if name == "causal" else f"{cell}, **{ratio:.3f}**")
    sums = {name: statistics.median(times) for name, times in alone.items()}
    ratios = [f"{name} {sums[name] / sums['causal']:.3f}" for name in names[1:]]
    documents = "one" if case.start is None else f"mean {MEAN_DOCUMENT}"
    print(f"| {case.seq} | {documents} | {' | '.join(cells)} | {', '.join(ratios)} |", flush=True)


def print_kernels(case: Case, copy_rate: float, product_rate: float) -> None:
    """Print our kernels beside the bytes and operations that they cannot do without."""
    rows = {
        # tensors of the size of q, of k, products of a query with its keys
        "forward": (r"gated_window.*forward|::forward<", 3, 2, 2),
        "backward, g * dO": (r"::prepare<", 3, 0, 0),
        "backward, queries": (r"queries::backward<", 4, 2, 3),
        "backward, keys": (r"keys::backward<", 2, 4, 4),
        "backward on Hopper": (r"sm90::backward<", 4, 4, 5),
    }
    import re

    q_bytes, k_bytes = (2 * case.seq * n * HEAD_DIM for n in (HEADS, KV_HEADS))
    product = 2 * case.seq * HEADS * HEAD_DIM * (WINDOW + 1)
    found = kernel_times(stepping(case.ours, case.d_out))
    print("\n| kernel | ms | bytes | TB/s | of the copy | TFLOP/s | of the product |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (pattern, queries, keys, products) in rows.items():
        ms = sum(t for kernel, (_, t) in found.items() if re.search(pattern, kernel))
        if ms == 0:  # not used on this GPU
            continue
        moved, flops = queries * q_bytes + keys * k_bytes, products * product
        print(
            f"| {name} | {ms:.3f} | {moved / 1e6:.0f} MB | {moved / ms / 1e9:.2f} "
            f"| {moved / ms * 1e3 / copy_rate:.0%} | {flops / ms / 1e9:.0f} "
            f"| {flops / ms * 1e3 / product_rate:.0%} |"
        )
    print()
    for kernel, (count, ms) in sorted(found.items(), key=lambda item: -item[1][1])[:12]:
        print(f"{ms:8.3f} ms  {count:.0f} x  {kernel[:100]}")


def print_gate(seq: int, copy_rate: float) -> None:
    """Print the gate's logits at the 7B width, which the rows above have for nothing."""
    from loopcoder.ops.gate_logits import gate_logits
    from loopcoder.ops.kernels import GateLogits

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16).requires_grad_()

    inputs = [draw(seq, 1, WIDTH), draw(WIDTH), draw(HEADS, WIDTH), draw(HEADS)]
    d_logits = torch.randn(seq, 1, HEADS, device="cuda", dtype=torch.bfloat16)
    print(
        f"\n| gate's logits at width {WIDTH} | forward | backward | passes over h | of the copy |"
    )
    print("| --- | --- | --- | --- | --- |")
    for name, function, passes in (("stock", gate_logits, 9), ("ours", GateLogits.apply, 3)):

        def logits(function: Any = function) -> tuple[Tensor, list[Tensor]]:
            return function(*inputs, 1e-5), inputs

        there = sum(ms for _, ms in kernel_times(logits).values())
        found = kernel_times(stepping(logits, d_logits))
        all_ = sum(ms for _, ms in found.values())
        rate = passes * 2 * seq * WIDTH / all_ * 1e3 / copy_rate
        print(f"| {name} | {there:.3f} ms | {all_ - there:.3f} ms | {passes} | {rate:.0%} |")
        for kernel, (count, ms) in sorted(found.items(), key=lambda item: -item[1][1]):
            print(f"{ms:8.4f} ms  {count:.0f} x  {kernel[:100]}")


def stepping(attend: Callable[[], Any], d_out: Tensor) -> Callable[[], Any]:
    def step() -> Any:
        out, inputs = attend()
        return torch.autograd.grad(out, inputs, d_out)

    return step


def events(functions: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Return the milliseconds of some calls of each, which alternate, since the clock of a GPU
    follows its load; what was in the L2 cache is gone before each.
    """
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    pairs: dict[str, list[Any]] = {name: [] for name in functions}
    for call in range(CALLS + 1):
        for name, function in functions.items():
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            began.record()
            function()
            ended.record()
            if call > 0:
                pairs[name].append((began, ended))
    torch.cuda.synchronize()
    return {
        name: [began.elapsed_time(ended) for began, ended in times] for name, times in pairs.items()
    }


def kernel_times(function: Callable[[], Any]) -> dict[str, tuple[float, float]]:
    """Return how often a call runs each kernel, and the milliseconds that they take in all."""
    calls = 20
    for _ in range(calls):  # until the clock is what it is under this load
        function()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            function()
        torch.cuda.synchronize()
    return {
        event.key: (event.count / calls, event.self_device_time_total / 1e3 / calls)
        for event in profiler.key_averages()
        if event.self_device_time_total > 0
    }


@torch.compile
def compiled_gate(gate: Tensor, far: Tensor, near: Tensor) -> Tensor:
    g = torch.sigmoid(gate.float())[..., None]
    return (g * far.float() + (1 - g) * near.float()).to(far.dtype)


def limits() -> tuple[float, float]:
    """Return bytes/s of a copy, read and written, and FLOP/s of a product, in this run."""
    source = torch.empty(2 << 30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    copy_ms = statistics.median(events({"copy": lambda: target.copy_(source)})["copy"])
    x, y = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    product_ms = statistics.median(events({"product": lambda: x @ y})["product"])
    return 2 * source.numel() / copy_ms * 1e3, 2 * 8192**3 / product_ms * 1e3


if __name__ == "__main__":
    main()
