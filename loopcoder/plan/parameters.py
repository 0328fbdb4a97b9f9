"""The parameters that one rank holds: which tensors, and where they lie in megatron-core's buffers.

Weights count once, whatever R is. Everything here is exact; `tests/plan` compares it with what a
real build allocates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import lcm
from typing import Literal

from loopcoder.config.schema import Config, ModelConfig, ParallelConfig
from loopcoder.parallel.layout import stage_layers

Part = Literal["embedding", "layers", "gates", "head"]

START_MULTIPLE, END_MULTIPLE = 64, 128
"""Elements to which the distributed optimizer aligns the start of a parameter and, beside the
number of ranks, the end of a bucket (megatron-core, optimizer/param_layout.py)."""
BUCKET_ELEMENTS, BUCKET_ELEMENTS_PER_RANK = 40_000_000, 1_000_000
"""Smallest bucket of an overlapped reduction (megatron-core, distributed_data_parallel.py)."""


@dataclass(frozen=True)
class Buffer:
    """How a rank's parameters lie in the one buffer that they share."""

    spans: list[tuple[int, int]]
    """First element and end of each parameter, in the order of the buffer."""
    buckets: list[tuple[int, int]]
    """First element and end of each bucket, padding included."""

    @property
    def numel(self) -> int:
        """Elements of the buffer, padding included."""
        return self.buckets[-1][1] if self.buckets else 0

    def owned(self, dp_size: int, dp_rank: int) -> int:
        """Return the parameters whose optimizer state a data-parallel rank holds: its equal part of
        every bucket, without padding."""
        total = 0
        for begin, end in self.buckets:
            share = (end - begin) // dp_size
            low = begin + share * dp_rank
            total += sum(max(0, min(e, low + share) - max(b, low)) for b, e in self.spans)
        return total


def rank_tensors(config: Config, vocab_size: int, pp_rank: int) -> list[tuple[Part, int]]:
    """Return part and number of elements of every parameter of a rank, in the model's order.

    Args:
        config: `model.layer_multiple` settled (`config.resolve`).
        vocab_size: rows of embedding and head, padded.
        pp_rank: the pipeline stage; all tensor- and data-parallel ranks of it hold as much.
    """
    model, parallel = config.model, config.parallel
    rows = vocab_size * model.hidden_size // parallel.tp
    stage = stage_layers(model.num_layers, parallel.pp, parallel.chunks_per_loop, pp_rank)
    tensors: list[tuple[Part, int]] = [("embedding", rows)] if pp_rank == 0 else []
    for _ in range(sum(map(len, stage))):
        tensors += _layer(model, parallel.tp)
    if pp_rank == parallel.pp - 1:
        tensors += [("layers", model.hidden_size), ("head", rows)]
        if config.objective.has_gate(model.num_loops):
            tensors += [("gates", model.hidden_size), ("gates", 1)]
    return tensors


def _layer(model: ModelConfig, tp: int) -> Iterator[tuple[Part, int]]:
    hidden, heads = model.hidden_size, model.num_attention_heads
    yield "layers", hidden
    yield "layers", hidden * heads * model.head_dim // tp
    yield "layers", hidden * (heads + 2 * model.num_kv_heads) * model.head_dim // tp
    if model.has_gates and model.gate == "hidden":  # replicated
        yield from (("gates", heads * hidden), ("gates", heads), ("gates", hidden))
    elif model.has_gates:
        yield from (("gates", heads // tp * model.head_dim), ("gates", heads // tp))
    yield "layers", hidden
    yield "layers", 2 * hidden * model.ffn_hidden_size // tp
    yield "layers", hidden * model.ffn_hidden_size // tp


def buffer_of(sizes: list[int], parallel: ParallelConfig, dp_size: int, pp_rank: int) -> Buffer:
    """Lay parameters out as megatron-core's DistributedDataParallel does: the last one first.

    Only the distributed optimizer pads, and only an overlapped reduction has several buckets, on
    the first stage.
    """
    start, end = 1, 1
    if parallel.distributed_optimizer:
        start, end = START_MULTIPLE, lcm(dp_size, END_MULTIPLE)
    splits = parallel.overlap_grad_reduce and pp_rank == 0
    bucket = max(BUCKET_ELEMENTS, BUCKET_ELEMENTS_PER_RANK * dp_size)
    spans, buckets = [], []
    begin = position = 0
    for size in reversed(sizes):
        position = _up(position, start)
        spans.append((position, position + size))
        position += size
        if splits and position - begin >= bucket:
            buckets.append((begin, _up(position, end)))
            begin = position = buckets[-1][1]
    if position > begin:
        buckets.append((begin, _up(position, end)))
    return Buffer(spans, buckets)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
