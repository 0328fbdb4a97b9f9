"""One batch through the loops of a model that may be spread over pipeline stages.

Batches go through one by one. A schedule that overlaps them would save time, but the last stage
measures the loops of one batch against each other, and has to have its embedding, which is on the
first.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from loopcoder.data.batch import Batch
from loopcoder.diagnose.capture import Capture
from loopcoder.model.plt import ChunkInput, PLTModel
from loopcoder.model.shared_kv import SharedKV
from loopcoder.parallel.mcore import Ranks


@torch.no_grad()
def run_loops(network: PLTModel, batch: Batch, loops: int, capture: Capture, ranks: Ranks) -> None:
    """Run the first `loops` loops, which have to be fewer than the network has: after its last it
    would read the head of all tokens. Every rank of a pipeline calls it."""
    assert loops < network.model.num_loops
    stages, shared = _Stages(ranks), SharedKV()
    chunks = list(product(range(loops), range(len(network.decoder.parts))))
    shape = (batch.tokens.shape[1], batch.tokens.shape[0], network.model.hidden_size)
    weight = next(network.parameters())
    like = torch.empty(shape, dtype=weight.dtype, device=ranks.device)
    hidden: Tensor | None = None
    for number, (loop_idx, part) in enumerate(chunks):
        if number > 0 or not stages.is_first:
            hidden = stages.before(hidden, like)
        if number == 0 and stages.is_last and not stages.is_first:
            capture.embedding = stages.receive(like, 0)
        chunk = ChunkInput(loop_idx, part, hidden, shared)
        hidden = network(batch.tokens, batch.documents, None, chunk=chunk, probe=capture)
        if number < len(chunks) - 1 or not stages.is_last:
            stages.onward(hidden)
        if number == 0 and stages.is_first and not stages.is_last:
            assert capture.embedding is not None
            stages.send(capture.embedding, stages.size - 1)


class _Stages:
    """The stages of a pipeline, each of which waits for the one before."""

    def __init__(self, ranks: Ranks):
        self._group: Any = ranks.groups.pp
        self.size, self._stage = self._group.size(), ranks.pp_rank

    @property
    def is_first(self) -> bool:
        return self._stage == 0

    @property
    def is_last(self) -> bool:
        return self._stage == self.size - 1

    def before(self, own: Tensor | None, like: Tensor) -> Tensor:
        """Return what the stage before has handed on; with one stage it is its own."""
        if self.size == 1:
            assert own is not None
            return own
        return self.receive(like, (self._stage - 1) % self.size)

    def onward(self, hidden: Tensor) -> None:
        """Hand on to the next stage, after the last to the first."""
        if self.size > 1:
            self.send(hidden, (self._stage + 1) % self.size)

    def send(self, tensor: Tensor, stage: int) -> None:
        there = dist.get_global_rank(self._group, stage)
        dist.send(tensor.contiguous(), there, group=self._group)

    def receive(self, like: Tensor, stage: int) -> Tensor:
        tensor = torch.empty_like(like)
        dist.recv(tensor, dist.get_global_rank(self._group, stage), group=self._group)
        return tensor
