"""The planner's memory against what a GPU really holds."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch

from loopcoder.plan.memory import RUNTIME_BYTES, rank_memory
from tests.configs import small_config
from tests.plan.allocated import allocated, planned

pytestmark = pytest.mark.gpu

VOCAB, LENGTH = 4096, 2048
SHAPE: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 1024,
    "ffn_hidden_size": 4096,
    "num_attention_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 128,
    "window": 64,
    "layer_spec": "te",
}


@pytest.mark.parametrize("distributed", [True, False])
@pytest.mark.parametrize("gate", ["hidden", "query"])
def test_weights_gradients_and_optimizer_are_exact(
    ranks: Any, gate: str, distributed: bool
) -> None:
    config = small_config(SHAPE | {"gate": gate}, "bf16", distributed_optimizer=distributed)
    assert planned(config, VOCAB, 1, 0, 0) == allocated(config, ranks, VOCAB)


@pytest.mark.parametrize("kernels", ["stock", "cuda"])
@pytest.mark.parametrize("loops", [1, 2, 3])
def test_the_peak_of_a_step_is_near_the_estimate(ranks: Any, loops: int, kernels: str) -> None:
    from loopcoder.data.batch import make_batch
    from loopcoder.optim.optimizer import update
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward

    config = small_config(SHAPE | {"num_loops": loops, "kernels": kernels}, "bf16")
    config = replace(
        config,
        data=replace(config.data, seq_length=LENGTH),
        train=replace(config.train, global_batch_size=4, micro_batch_size=4),
    )
    gc.collect()  # what an earlier test left in cycles would be freed during the step
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    state = build_state(config, ranks, VOCAB)
    ids = torch.arange(4)
    rows = torch.randint(4, VOCAB, (4, LENGTH + 1))  # no end-of-document token: one document a row
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        sums = forward_backward(state, [make_batch(rows, ids, ids * 0, eod=3)], 1)
        update(state.optimizer, config.optim, 1e-4, sums[1].sum())
    peak = torch.cuda.max_memory_allocated() - before
    expected = rank_memory(config, VOCAB, 1, 0).total_bytes - RUNTIME_BYTES
    print(f"R={loops} {kernels}: {peak / expected:.3f} of the estimate of {expected / 1e9:.2f} GB")
    assert peak == pytest.approx(expected, rel=0.15)
