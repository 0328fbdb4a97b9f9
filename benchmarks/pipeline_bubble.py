"""The bubble of a looped pipeline, measured against (PP-1)/(R*M).

    torchrun --nproc-per-node 2 benchmarks/pipeline_bubble.py --loops 2 --layers 8

Layers have the width of the 7B model; the vocabulary is small, so that all stages do the same
work and nothing but the bubble is left. The time of a step's forward and backward passes is
T(M) = c*M + d, where c is what one microbatch costs a stage that never waits: the slope between
many and twice as many microbatches. The bubble at M is T(M)/(c*M) - 1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from loopcoder.backends import detect
from loopcoder.config.compose import compose
from loopcoder.config.resolve import resolve
from loopcoder.data.batch import Batch, make_batch
from loopcoder.parallel import mcore

VOCAB = 1024
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--loops", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--chunks-per-loop", type=int, default=1)
    parser.add_argument("--seq-length", type=int, default=8192)
    parser.add_argument("--microbatches", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("overrides", nargs="*", help="further overrides of the config")
    arguments = parser.parse_args()

    mcore.start_processes()
    stages = dist.get_world_size()
    state = build(arguments, stages)
    times = {
        m: time_of(state, random_batches(arguments, m)) for m in sorted(arguments.microbatches)
    }
    half, most = sorted(times)[-2:]
    cost = (times[most] - times[half]) / (most - half)
    if dist.get_rank() == 0:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        parts = arguments.chunks_per_loop
        shape = f"R={arguments.loops}, {arguments.layers} layers, {parts} chunks a loop"
        print(f"{stages} x {gpu}, {shape}")
        print(f"one microbatch on a stage: {cost * 1e3:.2f} ms\n")
        print("| PP | R | chunks a loop | M | step | bubble | (PP-1)/(R*V*M) | ratio |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for m, seconds in times.items():
            bubble, theory = seconds / (cost * m) - 1, (stages - 1) / (arguments.loops * parts * m)
            print(
                f"| {stages} | {arguments.loops} | {parts} | {m} | {seconds * 1e3:.1f} ms "
                f"| {bubble:.2%} | {theory:.2%} | {bubble / theory:.3f} |"
            )
    mcore.shutdown()


def build(arguments: argparse.Namespace, stages: int) -> Any:
    """Build one stage of the model."""
    config = resolve(
        compose(
            [
                "model=plt_7b",
                f"model.num_loops={arguments.loops}",
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


def time_of(state: Any, batches: list[Batch]) -> float:
    """Return the median seconds of a step's forward and backward passes, the slowest rank's."""
    from loopcoder.parallel.schedule import run_chunks
    from loopcoder.train.step import _chunk_step

    device = state.ranks.device
    step = partial(_chunk_step, device=device, domains=1, probe=None)
    found = []
    for _ in range(REPEATS + 1):
        state.ddp.zero_grad_buffer()
        synchronise(device)
        dist.barrier()
        began = time.perf_counter()
        run_chunks(state.chunks, batches, step)
        synchronise(device)
        seconds = torch.tensor(time.perf_counter() - began, device=device)
        dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
        found.append(seconds.item())
    return statistics.median(found[1:])


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    main()
