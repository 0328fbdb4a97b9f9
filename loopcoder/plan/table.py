"""What the planner knows of a run, as lines of text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from loopcoder.config.schema import Config
from loopcoder.model.flops import gate_parameters, parameters, train_flops_per_token
from loopcoder.optim.schedule import branching_step
from loopcoder.plan.device import DeviceMemory
from loopcoder.plan.fit import gib
from loopcoder.plan.memory import (
    RUNTIME_BYTES,
    checkpoint_bytes,
    largest_rank,
    longest_evaluated,
)
from loopcoder.storage.disk import free_bytes


def rows(
    config: Config,
    vocab_size: int,
    world_size: int,
    run_dir: Path,
    device: DeviceMemory | None,
) -> Iterator[tuple[str, str]]:
    """Yield names and values: parameters, memory of the fullest process, checkpoints, FLOPs.

    Args:
        config: resolved and checked.
        vocab_size: rows of embedding and head.
        run_dir: where checkpoints go; it need not exist.
        device: what memory there is; None: unknown.
    """
    model = config.model
    table, total = vocab_size * model.hidden_size, parameters(model, vocab_size, config.objective)
    exit_gate = total - parameters(model, vocab_size)
    gates = model.num_layers * gate_parameters(model) + exit_gate
    yield "parameters", f"{total:,}, whatever R is"
    yield "  embedding", f"{table:,}"
    yield "  layers", f"{total - 2 * table - gates:,}"
    yield "  gates", f"{gates:,}"
    yield "  head", f"{table:,}"
    length = config.stages[-1].seq_length
    causal, full = train_flops_per_token(model, vocab_size, length, config.objective)
    yield (
        "FLOPs per token",
        f"{causal / 1e9:.4g}G causal, {full / 1e9:.4g}G full, R={model.num_loops}",
    )
    yield from _memory(config, vocab_size, world_size, device)
    size, most = checkpoint_bytes(config, vocab_size), _checkpoints_at_once(config)
    yield "checkpoint", f"{gib(size)}; up to {most} at a time: {gib(most * size)}"
    yield "  disk", f"{gib(free_bytes(run_dir))} free at {run_dir}"


def disk_warning(config: Config, vocab_size: int, run_dir: Path) -> str | None:
    """Return a warning where the checkpoints that are kept are more than the disk has free."""
    needed = kept_bytes(config, vocab_size)
    free = free_bytes(run_dir)
    if needed <= free:
        return None
    return (
        f"warning: checkpoints come to {gib(needed)}, {run_dir} has {gib(free)} free; "
        f"a lower checkpoint.keep, or run_dir= on another disk"
    )


def kept_bytes(config: Config, vocab_size: int) -> int:
    """Return what the checkpoints of a run take at most at a time."""
    return checkpoint_bytes(config, vocab_size) * _checkpoints_at_once(config)


def _memory(
    config: Config, vocab_size: int, world_size: int, device: DeviceMemory | None
) -> Iterator[tuple[str, str]]:
    memory, micro = largest_rank(config, vocab_size, world_size), config.train.micro_batch_size
    length = max(stage.seq_length for stage in config.stages)
    fullest = f", the fullest of {world_size}" if world_size > 1 else ""
    yield "memory per process", f"about {gib(memory.total_bytes)}{fullest}"
    yield "  weights", gib(memory.weights_bytes)
    yield "  gradients", gib(memory.gradients_bytes)
    yield "  optimizer", gib(memory.optimizer_bytes)
    activations = memory.activations_bytes + memory.logits_bytes
    yield "  activations", f"{gib(activations)}, estimate: {micro} x {length} tokens at once"
    if memory.loop_gradients_bytes:
        yield (
            "  loops",
            f"{gib(memory.loop_gradients_bytes)}, estimate: gradients that wait for loop 0",
        )
    if longest := longest_evaluated(config):
        yield (
            "  evaluation",
            f"{gib(memory.evaluation_bytes)}, estimate: {micro} x {longest} tokens at once, "
            "when no activations are held",
        )
    if memory.fp8_bytes:
        yield "  FP8", f"{gib(memory.fp8_bytes)}, estimate: copies of the weights"
    yield "  libraries", f"{gib(RUNTIME_BYTES)}, estimate"
    if device is not None:
        shared = f", shared by {device.processes} processes" if device.processes > 1 else ""
        free = f", {gib(device.free_bytes)} free" if device.free_bytes < device.total_bytes else ""
        yield "memory", f"{device.name} has {gib(device.total_bytes)}{free}{shared}"


def _checkpoints_at_once(config: Config) -> int:
    """Return how many there are at most: one more than are kept, while the next is written."""
    keep, interval = config.checkpoint.keep, config.checkpoint.interval
    written = config.train.max_steps // interval if interval else 0
    if config.checkpoint.save_at_end and (not interval or config.train.max_steps % interval):
        written += 1
    branch = branching_step(config.optim, config.train.max_steps, None)
    if interval and branch is not None:
        written += branch % interval > 0
        keep = None if keep is None else keep + 1
    every = config.checkpoint.keep_every
    if interval and keep is not None and every is not None:
        keep += config.train.max_steps // math.lcm(interval, every)
    return written if keep is None else min(keep + 1, written)
