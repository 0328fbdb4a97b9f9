"""The planner's arithmetic against what real builds allocate, byte by byte."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loopcoder.checkpoint.format import MANIFEST, STATE
from loopcoder.config.compose import compose
from loopcoder.config.objective import ObjectiveConfig
from loopcoder.model.flops import parameters
from loopcoder.parallel.layout import stage_layers
from loopcoder.plan.activations import microbatches_in_flight
from loopcoder.plan.memory import (
    RUNTIME_BYTES,
    checkpoint_bytes,
    largest_rank,
    planned_vocabulary,
    rank_memory,
)
from loopcoder.plan.parameters import buffer_of, rank_tensors
from tests.checkpoint.states import state_at
from tests.configs import small_config
from tests.plan.allocated import allocated, planned

CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({}, {"distributed_optimizer": False}),
    ({}, {"overlap_grad_reduce": True}),
    ({"num_loops": 1}, {}),
    ({"num_loops": 3, "gate": "query"}, {"distributed_optimizer": False}),
    ({"kv_sharing": "own", "num_kv_heads": 1, "num_layers": 3}, {}),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("model", "parallel"), CASES)
def test_one_process_allocates_what_was_planned(
    ranks: Any, rng: random.Random, precision: str, model: dict[str, Any], parallel: dict[str, Any]
) -> None:
    odd = {"ffn_hidden_size": rng.randint(3, 60), "hidden_size": 2 * rng.randint(5, 30)}
    config = small_config(model | odd, precision, **parallel)
    if rng.random() < 0.5:
        config = replace(config, precision=replace(config.precision, grad_reduce_in_fp32=False))
    assert planned(config, 128, 1, 0, 0) == allocated(config, ranks, 128)


def test_an_exit_gate_is_planned(ranks: Any) -> None:
    config = replace(small_config(dict(num_loops=3)), objective=ObjectiveConfig(exit=True))
    assert planned(config, 128, 1, 0, 0) == allocated(config, ranks, 128)
    plain = replace(config, objective=ObjectiveConfig())
    gate = config.model.hidden_size + 1  # weight, main weight and two moments of 4 bytes
    assert checkpoint_bytes(config, 128) - checkpoint_bytes(plain, 128) == 16 * gate


def test_several_buckets_are_laid_out_as_megatron_does() -> None:
    """Real sizes, on no device: buckets of 40 million elements on the first stage only."""
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    config = compose(["model=plt_1b", "parallel=dp_overlap"])
    sizes = [numel for _, numel in rank_tensors(config, 50_304, 0)]
    tensors = [torch.nn.Parameter(torch.empty(size, device="meta")) for size in sizes]
    for dp_size in (1, 3, 64):
        bucket = max(40_000_000, 1_000_000 * dp_size)
        wanted = DistributedOptimizer._compute_per_buffer_param_layout(
            tensors, bucket, dp_size, DistributedDataParallelConfig(use_distributed_optimizer=True)
        )
        ours = buffer_of(sizes, config.parallel, dp_size, 0)
        assert ours.buckets == wanted.bucket_indices
        assert len(ours.buckets) > 5
        shares = [ours.owned(dp_size, rank) for rank in range(dp_size)]
        assert sum(shares) == sum(sizes)
        assert len(buffer_of(sizes, config.parallel, dp_size, 1).buckets) == 1


def test_stages_and_shards_hold_the_whole_model_once(rng: random.Random) -> None:
    model = {"num_layers": rng.randint(4, 9), "gate": "query"}
    for tp, pp, chunks in ((1, 1, 1), (2, 1, 1), (1, 3, 1), (2, 2, 2)):
        config = small_config(model, "bf16", tp=tp, pp=pp, chunks_per_loop=chunks)
        layers = [
            sum(map(len, stage_layers(model["num_layers"], pp, chunks, s))) for s in range(pp)
        ]
        assert sum(layers) == model["num_layers"]
        split = [rank_tensors(config, 256, stage) for stage in range(pp)]
        total = sum(numel for stage in split for _, numel in stage)
        norms = (2 * model["num_layers"] + 1) * config.model.hidden_size
        assert total * tp - (tp - 1) * norms == parameters(config.model, 256)


MEASURED = [
    ("precision=bf16 model.num_loops=1 model.num_layers=4 train.global_batch_size=1", 1, 57.2),
    ("precision=bf16 model.num_loops=2 model.num_layers=2 train.global_batch_size=1", 1, 41.5),
    ("precision=bf16 model.num_loops=4 model.num_layers=2 train.global_batch_size=1", 1, 49.5),
    ("precision=fp8_tensorwise model.num_layers=4 train.global_batch_size=1", 1, 66.9),
    ("precision=bf16 train.global_batch_size=8", 4, 122.9),
    ("precision=bf16 parallel=tp2_sp train.global_batch_size=8", 4, 72.2),
    ("precision=fp8_tensorwise parallel=tp2_sp train.global_batch_size=8", 4, 74.5),
    ("precision=bf16 parallel.recompute=full train.global_batch_size=4", 2, 94.0),
    ("precision=bf16 parallel=pp2 parallel.recompute=full train.global_batch_size=4", 2, 75.7),
]
"""Peaks on H200s, GiB per GPU, by PyTorch's allocator (docs/performance.md)."""


@pytest.mark.parametrize(("overrides", "gpus", "peak"), MEASURED)
def test_the_released_model_as_it_was_measured(overrides: str, gpus: int, peak: float) -> None:
    fixed = ["model=plt_7b", "model.layer_spec=te", "model.kernels=cuda"]
    memory = largest_rank(compose([*fixed, *overrides.split()]), 76_800, gpus)
    assert (memory.total_bytes - RUNTIME_BYTES) / 2**30 == pytest.approx(peak, rel=0.04)


@pytest.mark.parametrize(
    ("overrides", "bytes_each"),
    [
        ("precision=fp32", 4),
        ("precision=bf16", 0),  # added to an fp32 buffer loop by loop
        ("precision=bf16 precision.grad_reduce_in_fp32=false", 2),
        ("precision=fp32 parallel=pp2", 0),
        ("precision=fp32 model.num_loops=1", 0),
    ],
)
def test_gradients_wait_for_loop_0_where_autograd_adds_them(
    overrides: str, bytes_each: int
) -> None:
    config = compose(["model.layer_spec=torch", "model.num_loops=2", *overrides.split()])
    layers = [n for part, n in rank_tensors(config, 256, 0) if part in ("layers", "gates")]
    assert rank_memory(config, 256, 2, 0).loop_gradients_bytes == bytes_each * sum(layers)


def test_microbatches_in_flight() -> None:
    assert microbatches_in_flight(1, 0, 8, 2) == 1
    assert [microbatches_in_flight(4, s, 8, 1) for s in range(4)] == [4, 3, 2, 1]
    assert microbatches_in_flight(4, 0, 2, 1) == 2
    # two loops on two stages, groups of two: 2 + 2 chunks before the first backward one
    assert microbatches_in_flight(2, 0, 8, 2) == 2.5
    assert microbatches_in_flight(2, 1, 8, 2) == 1.5


def test_a_checkpoint_has_the_size_that_the_readme_shows() -> None:
    config = compose(["precision=fp32"])
    assert checkpoint_bytes(config, 1024) == 16 * parameters(config.model, 1024)


def test_a_run_on_chats_has_the_vocabulary_of_what_it_begins_with(
    tmp_path: Path, rng: random.Random
) -> None:
    rows = 128 * rng.randint(40, 999)
    step = tmp_path / "base" / "checkpoints" / "step_00000003"
    step.mkdir(parents=True)
    (step / STATE).write_text(json.dumps(state_at(3, vocab_size=rows).to_json()))
    asked = ["data=chat", "path=chats.jsonl", f"checkpoint.init_from={tmp_path / 'base'}"]
    config = compose(asked)
    assert planned_vocabulary(config) < rows, "there is no complete checkpoint"
    (step / MANIFEST).write_text("{}")
    assert planned_vocabulary(config) == rows
    assert planned_vocabulary(compose([*asked, "model.vocab_size=640"])) == 640
