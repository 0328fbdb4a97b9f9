"""What the ranks of a layout allocate is what the planner says."""

from __future__ import annotations

from typing import Any

import pytest

from loopcoder.config.schema import Config
from tests.configs import small_config
from tests.dist.launch import in_processes
from tests.plan.allocated import allocated, planned


def _allocated_in_layouts(rank: int, layouts: list[Config]) -> list[Any]:
    from loopcoder.parallel import mcore

    out = []
    for config in layouts:
        ranks = mcore.initialise(config.parallel, seed=1)
        out.append((ranks.pp_rank, ranks.dp_rank, allocated(config, ranks, 256)))
    return out


@pytest.mark.dist_full
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
