"""The bubble of a looped pipeline, measured against (PP-1)/(R*M).

    torchrun --nproc-per-node 2 benchmarks/pipeline_bubble.py --loops 2 --layers 8
    torchrun --nproc-per-node 4 benchmarks/pipeline_bubble.py --loops 1 2 3 --out bubble.jsonl

Every process is a stage. Layers have the width of the 7B model; the vocabulary is small, so that
all stages do the same work. In every step the time in which a GPU computes (communication does not
count) is read from a trace; idle over busy is the bubble, plus what launches and exposed
communication cost in every microbatch. The latter does not depend on M, so the line
idle/busy = bubble/M + rest separates the two. (Comparing the times of steps with few and many
microbatches would not do: a GPU that waits more runs at a higher clock.)
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from measured import Kept

from loopcoder.backends import detect
from loopcoder.config.compose import compose
from loopcoder.config.resolve import resolve
from loopcoder.data.batch import Batch, make_batch
from loopcoder.parallel import mcore

VOCAB = 1024
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--loops", type=int, nargs="+", default=[2])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--chunks-per-loop", type=int, default=1)
    parser.add_argument("--seq-length", type=int, default=8192)
    parser.add_argument(
        "--microbatches", type=int, nargs="+", help="default: 1, 2, 4 and 8 times the stages"
    )
    parser.add_argument("--out", type=Path, help="file of the results, lines of JSON")
    parser.add_argument("overrides", nargs="*", help="further overrides of the config")
    arguments = parser.parse_args()

    mcore.start_processes()
    stages = dist.get_world_size()
    counts = arguments.microbatches or [stages * n for n in (1, 2, 4, 8)]
    for loops in arguments.loops:
        state = build(arguments, loops, stages)
        idle_share(state, random_batches(arguments, stages))  # kernels are compiled
        found = {m: idle_share(state, random_batches(arguments, m)) for m in counts}
        if dist.get_rank() == 0:
            result = fitted(found, stages, loops, arguments.chunks_per_loop)
            asked = {"layers": arguments.layers, "overrides": arguments.overrides}
            print(table(Kept(arguments.out).add(result | asked)), flush=True)
        del state
        gc.collect()
    mcore.shutdown()


def fitted(
    found: dict[int, tuple[float, float]], stages: int, loops: int, parts: int
) -> dict[str, Any]:
    """Separate the bubble from what every microbatch costs.

    Args:
        found: Seconds of a step, and idle over busy time, by the number of microbatches.
        parts: Chunks per loop.
    """
    bubble, rest = statistics.linear_regression(
        [1 / m for m in found], [idle for _, idle in found.values()]
    )
    theory = (stages - 1) / (loops * parts)
    steps = [
        {"microbatches": m, "step_s": seconds, "idle": idle, "theory": theory / m}
        for m, (seconds, idle) in found.items()
    ]
    shape = {"stages": stages, "loops": loops, "chunks_per_loop": parts}
    return shape | {"bubble": bubble, "rest": rest, "theory": theory, "steps": steps}


def table(result: dict[str, Any]) -> str:
    """Return the table of one number of loops."""
    shape = f"{result['stages']} | {result['loops']} | {result['chunks_per_loop']}"
    rows = [
        f"| {shape} | {s['microbatches']} | {s['step_s'] * 1e3:.1f} ms | {s['idle']:.2%} "
        f"| {s['idle'] - result['rest']:.2%} | {s['theory']:.2%} |"
        for s in result["steps"]
    ]
    return "\n".join(
        [
            f"{result['hardware']}, {result['layers']} layers\n",
            "| PP | R | chunks per loop | M | step | idle / busy | without the rest | theory |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            f"\nbubble {result['bubble']:.3f}/M, (PP-1)/(R*V) = {result['theory']:.3f}, "
            f"ratio {result['bubble'] / result['theory']:.3f};",
            f"launches and exposed communication {result['rest']:.2%}\n",
        ]
    )


def build(arguments: argparse.Namespace, loops: int, stages: int) -> Any:
    """Build one stage of the model."""
    config = resolve(
        compose(
            [
                "model=plt_7b",
                f"model.num_loops={loops}",
                f"model.num_layers={arguments.layers}",
                f"model.vocab_size={VOCAB}",
                f"data.seq_length={arguments.seq_length}",
                f"parallel.pp={stages}",
                f"parallel.chunks_per_loop={arguments.chunks_per_loop}",
                *arguments.overrides,
            ]
        ),
        detect(),
    )
    ranks = mcore.initialise(config.parallel, config.seed)
    from loopcoder.train.state import build_state

    return build_state(config, ranks, VOCAB)


def random_batches(arguments: argparse.Namespace, count: int) -> list[Batch]:
    ids = torch.randint(1, VOCAB, (count, 1, arguments.seq_length + 1))
    one = torch.zeros(1, dtype=torch.long)
    return [make_batch(row, one, one, 0, isolate_documents=False) for row in ids]


def idle_share(state: Any, batches: list[Batch]) -> tuple[float, float]:
    """Return seconds of a step's passes, and idle over busy time, the mean over stages; medians."""
    from loopcoder.parallel.schedule import run_chunks
    from loopcoder.train.step import chunk_step

    device = state.ranks.device
    kinds = torch.profiler.ProfilerActivity
    activity = kinds.CUDA if device.type == "cuda" else kinds.CPU
    step = partial(chunk_step, device=device, domains=1)
    found = []
    for _ in range(REPEATS):
        state.ddp.zero_grad_buffer()
        dist.barrier()
        synchronise(device)
        with torch.profiler.profile(activities=[activity]) as profiler:
            began = time.perf_counter()
            run_chunks(state.chunks, batches, step)
            synchronise(device)
            seconds = torch.tensor(time.perf_counter() - began, device=device)
        dist.all_reduce(seconds, op=dist.ReduceOp.MAX)  # who is done first waits for the others
        idle = seconds / busy_s(profiler, device) - 1
        dist.all_reduce(idle)
        found.append((seconds.item(), idle.item() / dist.get_world_size()))
    return tuple(statistics.median(values) for values in zip(*found, strict=True))  # type: ignore


def busy_s(profiler: Any, device: torch.device) -> float:
    """Return the seconds in which the device ran any kernel but those of communication."""
    kind = (
        torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    )
    spans = sorted(
        (e.time_range.start, e.time_range.end)
        for e in profiler.events()
        if e.device_type == kind
        and not getattr(e, "is_user_annotation", False)
        and not re.search("nccl|gloo|recv|send", e.name, re.IGNORECASE)
    )
    busy = until = 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / 1e6


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    main()
