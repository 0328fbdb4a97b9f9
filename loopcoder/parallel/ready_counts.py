"""What megatron-core's overlapped reduction waits for, where steps run different numbers of loops.

Its bucket groups count in the first step how often the gradient of each parameter comes, and reduce
a bucket in later steps as soon as it has come as often. With chunks of a pipeline, or with layers
that are recomputed, it comes once for each loop. So there is a first step for each number of loops.
"""

from __future__ import annotations

from typing import Any

_COUNTS = "ready_counts_by_loops"
_LOOPS = "loops_of_ready_counts"


def expect_gradients_of(ddp: Any, loops: int) -> None:
    """Tell megatron-core's DistributedDataParallel how many loops the next step runs, after its
    gradients have been zeroed, which takes the counts of the step before."""
    for group in ddp.bucket_groups + ddp.expert_parallel_bucket_groups:
        known: dict[int, Any] = group.__dict__.setdefault(_COUNTS, {})
        before = group.__dict__.get(_LOOPS, loops)
        if not group.is_first_batch:
            known[before] = group.golden_per_param_grad_ready_counts
        group.golden_per_param_grad_ready_counts = known.get(loops, {})
        group.is_first_batch = loops not in known
        group.__dict__[_LOOPS] = loops
