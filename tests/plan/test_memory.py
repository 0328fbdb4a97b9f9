"""The planner's arithmetic against what real builds allocate, byte by byte."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from loopcoder.config.compose import compose
from loopcoder.config.schema import Config
from loopcoder.model.flops import parameters
from loopcoder.parallel.layout import stage_layers
from loopcoder.plan.activations import microbatches_in_flight
from loopcoder.plan.memory import checkpoint_bytes, largest_rank, rank_memory
from loopcoder.plan.parameters import buffer_of, rank_tensors
from tests.configs import small_config
from tests.dist.launch import in_processes


def bytes_of(tensors: Any) -> int:
    """Bytes of the storages behind tensors, each once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def allocated(config: Config, ranks: Any, vocab_size: int) -> tuple[int, int, int]:
    """Build a state, update it once, and return the bytes of weights, gradients and optimizer."""
    from loopcoder.optim.optimizer import update
    from loopcoder.train.state import build_state

    state = build_state(config, ranks, vocab_size)
    update(state.optimizer, config.optim, 1e-3, torch.ones(()))
    weights = list(state.network.parameters())
    gradients = [buffer.grad_data for buffer in state.ddp.buffers]
    inner = getattr(state.optimizer, "chained_optimizers", [state.optimizer])
    held = [
        tensor
        for one in inner
        for parameter, moments in one.optimizer.state.items()
        for tensor in (parameter, *moments.values())
    ]
    in_weights = {w.untyped_storage().data_ptr() for w in weights}
    own = [t for t in held if t.untyped_storage().data_ptr() not in in_weights]
    return bytes_of(weights), bytes_of(gradients), bytes_of(own)


def planned(config: Config, vocab_size: int, world: int, pp: int, dp: int) -> tuple[int, int, int]:
    memory = rank_memory(config, vocab_size, world, pp, dp)
    return memory.weights_bytes, memory.gradients_bytes, memory.optimizer_bytes


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


def _allocated_in_layouts(rank: int, layouts: list[Config]) -> list[Any]:
    from loopcoder.parallel import mcore

    out = []
    for config in layouts:
        ranks = mcore.initialise(config.parallel, seed=1)
        out.append((ranks.pp_rank, ranks.dp_rank, allocated(config, ranks, 256)))
    return out


@pytest.mark.dist
def test_layouts_allocate_what_was_planned() -> None:
    """Uneven stages, replicated and split gates, shards of two ranks, on two processes."""
    model = {"num_layers": 3}
    layouts = [
        small_config(model, "bf16", tp=2),
        small_config(model, "bf16", tp=2, sp=True, distributed_optimizer=False),
        small_config(model | {"gate": "query"}, "fp32", tp=2),
        small_config(model, "bf16", pp=2),
        small_config(model | {"num_layers": 5}, "fp32", pp=2, chunks_per_loop=2),
        small_config(model | {"hidden_size": 30}, "bf16"),
        small_config(model, "fp32", overlap_grad_reduce=True, overlap_param_gather=True),
        small_config(model, "bf16", distributed_optimizer=False),
    ]
    for found in in_processes(2, _allocated_in_layouts, layouts):
        for config, (pp_rank, dp_rank, bytes_found) in zip(layouts, found, strict=True):
            assert bytes_found == planned(config, 256, 2, pp_rank, dp_rank), config.parallel


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
        layers = [sum(map(len, stage_layers(model["num_layers"], pp, chunks, s))) for s in range(pp)]
        assert sum(layers) == model["num_layers"]
        split = [rank_tensors(config, 256, stage) for stage in range(pp)]
        total = sum(numel for stage in split for _, numel in stage)
        norms = (2 * model["num_layers"] + 1) * config.model.hidden_size
        assert total * tp - (tp - 1) * norms == parameters(config.model, 256)


def test_the_released_model_as_it_was_measured() -> None:
    """7B on four H200s, bf16, data-parallel: 2 + 4 + 12/4 bytes per parameter are 63.8 GiB, and the
    whole was measured as 122.9 GiB (docs/performance.md)."""
    overrides = ["model=plt_7b", "precision=bf16", "model.layer_spec=te", "model.kernels=cuda"]
    memory = largest_rank(compose(overrides), 76_800, 4)
    assert memory.parameters == 7_615_749_680
    assert memory.fixed_bytes / 2**30 == pytest.approx(63.8, abs=0.1)
    assert memory.total_bytes / 2**30 == pytest.approx(122.9, rel=0.04)


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
