"""The schedule waits exactly as long as theory says: chunks tell the time, and compute nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.configs import small_config
from tests.dist.launch import in_processes
from tests.dist.layouts import global_batch, microbatches

pytestmark = pytest.mark.dist_full

MICROBATCHES = {2: (2, 4, 8), 4: (4, 8, 12)}
"""By number of stages."""


class Clock:
    """Time on a rank whose chunks take 1 forward and 2 backward, as layers do, and nothing else.

    Tensors between chunks hold the time at which they were ready, so that the result is exact
    whatever else the machine does.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def work(self, ready: float, duration: float) -> float:
        """Wait until `ready`, work, and return the time then."""
        self.now = max(self.now, ready) + duration
        return self.now


class Work(torch.autograd.Function):
    """What a chunk computes: when it is done."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, clock: Clock, is_end: bool) -> torch.Tensor:
        ctx.clock, ctx.is_end = clock, is_end
        return torch.full_like(x, clock.work(x.max().item(), 1))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        # nothing is waited for after the loss
        ready = 0.0 if ctx.is_end else grad.max().item()
        return torch.full_like(grad, ctx.clock.work(ready, 2)), None, None


class TimedStage(torch.nn.Module):
    """What a chunk needs of a network in DDP."""

    def __init__(self, config: Any, post_process: bool, loops: int, parts: int):
        super().__init__()
        self.config, self.post_process = config, post_process
        self.__dict__["module"] = self
        self.last = (loops - 1, parts - 1)
        self.clock = Clock()

    def forward(self, tokens: torch.Tensor, docs: Any, labels: Any, *, chunk: Any, **_: Any) -> Any:
        hidden = chunk.hidden
        if hidden is None:
            shape = (tokens.shape[1], tokens.shape[0], self.config.hidden_size)
            hidden = torch.zeros(shape, requires_grad=True)
        is_end = self.post_process and (chunk.loop_idx, chunk.part) == self.last
        hidden = Work.apply(hidden, self.clock, is_end)
        return hidden.sum(-1).transpose(0, 1) if is_end else hidden

    def set_is_first_microbatch(self) -> None:
        """There are no weights."""


def idle_shares(_: int, pp: int, loops: int, parts: int) -> list[float]:
    """Return idle over busy time of a step for every number of microbatches."""
    from loopcoder.model.specs import transformer_config
    from loopcoder.parallel import mcore
    from loopcoder.parallel.schedule import build_chunks, run_chunks
    from loopcoder.train.step import chunk_step

    config = small_config(
        dict(num_loops=loops, num_layers=pp * parts), pp=pp, chunks_per_loop=parts
    )
    ranks = mcore.initialise(config.parallel, 1)
    mcore_config = transformer_config(config)
    mcore_config.finalize_model_grads_func = lambda *_, **__: None
    stage = TimedStage(mcore_config, ranks.pp_rank == pp - 1, loops, parts)
    chunks = build_chunks(mcore_config, stage, loops, parts)

    def step(batches: Any, chunk: Any) -> Any:
        return chunk_step(batches, chunk, device=ranks.device, domains=2)

    shares = []
    for count in MICROBATCHES[pp]:
        batches = microbatches(config, global_batch(1, 0, 2 * count, 32), False, 0, 1)
        assert len(batches) == count
        stage.clock.now = 0.0
        run_chunks(chunks, batches, step)
        end = torch.tensor(stage.clock.now)
        dist.all_reduce(end, dist.ReduceOp.MAX)
        shares.append(end.item() / (3 * loops * parts * count) - 1)
    return shares


@pytest.mark.parametrize(("pp", "loops", "parts"), [(2, 1, 1), (2, 2, 1), (2, 2, 2), (4, 2, 1)])
def test_bubble(pp: int, loops: int, parts: int) -> None:
    shares = in_processes(pp, idle_shares, pp, loops, parts)[0]
    theory = [(pp - 1) / (loops * parts * m) for m in MICROBATCHES[pp]]
    print(f"measured {shares}, theory {theory}")
    # Without loops as chunks the bubble would be R times as large.
    assert shares == pytest.approx(theory, abs=1e-6)
