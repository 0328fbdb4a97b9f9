"""One optimizer step: gradient accumulation over microbatches through megatron's schedule, then the
update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel.schedules import forward_backward_no_pipelining
from torch import Tensor

from loopcoder.data.batch import Batch
from loopcoder.model.objective import parts
from loopcoder.model.reuse import forget_fp8_copies
from loopcoder.model.step_objective import StepObjective, step_objective
from loopcoder.parallel.ready_counts import expect_gradients_of
from loopcoder.parallel.schedule import run_chunks
from loopcoder.train.by_domain import loss_fields
from loopcoder.train.measures import NOTHING, Measures, sum_over_ranks
from loopcoder.train.state import TrainState


@dataclass(frozen=True)
class StepResult:
    """What one step brought; its tensors stay on the device until the step is logged."""

    sums: Tensor
    """Summed loss and number of valid tokens by domain, over all ranks. [2, domains]"""
    grad_norm: Tensor
    """Global norm of the averaged gradient before clipping. []"""
    lr: float
    measures: Measures
    """None are taken unless the step is logged."""
    loops: int
    """Loops that the step ran."""

    def fields(self, domains: Sequence[str]) -> dict[str, float]:
        """Return the fields of a record; this waits for the device."""
        loss, tokens = self.sums.tolist()
        all_tokens = max(sum(tokens), 1.0)
        return {
            "loss": sum(loss) / all_tokens,
            "lr": self.lr,
            "grad_norm": self.grad_norm.item(),
            **loss_fields(domains, loss, tokens),
            **self.measures.fields(all_tokens),
        }


def forward_backward(
    state: TrainState,
    microbatches: list[Batch],
    domains: int,
    measures: Measures = NOTHING,
    loops: int | None = None,
) -> Tensor:
    """Compute the gradients of one step, and return sums of the last loop's loss by domain.

    Gradients are those of the objective, which is that loss unless `state.objective` says
    otherwise, summed over the valid tokens of the global batch; the update divides them by the
    number of these tokens, which makes the mean of the contract.

    Args:
        measures: taken on the way; they are over all ranks afterwards.
        loops: that the step runs; None: all of them.

    Returns:
        [2, domains] in fp32 on the device: summed loss and number of valid tokens, over all ranks.
    """
    num_loops = state.network.model.num_loops
    loops = num_loops if loops is None else loops
    state.ddp.zero_grad_buffer()
    state.optimizer.zero_grad()
    if state.objective.draws_loops:
        expect_gradients_of(state.ddp, loops)
    measures.begin()
    device = state.ranks.device
    of_step = partial(
        chunk_step if state.chunks else _forward_step,
        device=device,
        domains=domains,
        measures=measures,
        objective=step_objective(state.objective, num_loops, loops),
    )
    if state.chunks:
        sums = run_chunks(state.chunks_of(loops), microbatches, of_step)
    else:
        sums = forward_backward_no_pipelining(
            forward_step_func=of_step,
            data_iterator=iter(list(enumerate(microbatches))),
            model=state.ddp,
            num_microbatches=len(microbatches),
            seq_length=microbatches[0].tokens.shape[1],
            micro_batch_size=microbatches[0].tokens.shape[0],
        )
    total = torch.zeros(2, domains, device=device)
    for s in sums:  # only the last stage of a pipeline has any
        total += s["sums"]
    sum_over_ranks(state, total)
    measures.finish(state, total)
    return total


def _forward_step(
    batches: Iterator[tuple[int, Batch]],
    model: Any,
    *,
    device: torch.device,
    domains: int,
    measures: Measures,
    objective: StepObjective,
) -> Any:
    microbatch, host_batch = next(batches)
    batch = host_batch.to(device)
    probe = measures.of_microbatch(microbatch, batch)
    output = model(batch.tokens, batch.documents, batch.labels, probe=probe, objective=objective)
    return output, _reading(batch, domains, measures, objective)


def losses(state: TrainState, batches: list[Batch], *, every_loop: bool) -> Iterable[Tensor]:
    """Compute the loss of every token of some microbatches, after each loop or after the last only.

    Returns:
        for each microbatch [R or 1, B, S] in fp32, the same on all pipeline stages. Call it without
        gradients; all ranks of a pipeline must.
    """
    forget_fp8_copies(state.network.used_in_every_loop())
    if state.chunks:
        return _losses_of_pipeline(state, batches, every_loop)
    one = (state.network(b.tokens, b.documents, b.labels, every_loop=every_loop) for b in batches)
    return one if every_loop else (loss[None] for loss in one)


def _losses_of_pipeline(state: TrainState, batches: list[Batch], every_loop: bool) -> list[Tensor]:
    # A pipeline takes at least as many microbatches as it has stages; what is repeated is ignored.
    stages = state.ranks.groups.pp.size()
    filled = batches + [batches[0]] * max(0, stages - len(batches))
    found: list[list[Tensor]] = [[] for _ in filled]
    step = partial(_chunk_losses, every_loop=every_loop, found=found)
    run_chunks(state.chunks, filled, step, forward_only=True)
    loops = state.network.model.num_loops if every_loop else 1
    out = []
    for batch, by_loop in zip(batches, found, strict=False):
        missing = [batch.loss_mask.new_zeros(batch.tokens.shape)] * loops
        loss = torch.stack(by_loop or missing)  # only the last stage has any
        dist.all_reduce(loss, group=state.ranks.groups.pp)
        out.append(loss)
    return out


def _chunk_losses(
    batches: Iterator[tuple[int, Batch]], chunk: Any, *, every_loop: bool, found: list[list[Tensor]]
) -> Any:
    microbatch, batch = next(batches)
    out, loss = chunk(microbatch, batch, every_loop), None
    if isinstance(out, tuple):
        out, loss = out
    elif chunk.ends_in_loss:
        loss = out
    if loss is not None:
        found[microbatch].append(loss)
    one = torch.ones((), dtype=torch.int, device=batch.tokens.device)
    return out, lambda tensor: (tensor.sum(), one, {})


def chunk_step(
    batches: Iterator[tuple[int, Batch]],
    chunk: Any,
    *,
    device: torch.device,
    domains: int,
    measures: Measures = NOTHING,
    objective: StepObjective | None = None,
) -> Any:
    microbatch, host_batch = next(batches)
    batch = host_batch.to(device)
    probe = measures.of_microbatch(microbatch, batch)
    output = chunk(microbatch, batch, probe=probe, objective=objective)
    return output, _reading(batch, domains, measures, objective)


def _reading(
    batch: Batch, domains: int, measures: Measures, objective: StepObjective | None
) -> Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Return what makes of a microbatch's output what megatron's schedule wants with
    calculate_per_token_loss: (sum, tokens, to report)."""
    sums_loops = objective is not None and objective.sums_loops

    def read(output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        trained, losses, _ = parts(output) if sums_loops else (output, output[None], None)
        masked = losses[-1] * batch.loss_mask
        total = (trained * batch.loss_mask).sum() if sums_loops else masked.sum()
        tokens = batch.loss_mask.sum()
        rows = len(batch.domain_ids)  # they may lie end to end in one
        of_rows = masked.detach().view(rows, -1), batch.loss_mask.view(rows, -1)
        by_row = torch.stack([x.sum(1) for x in of_rows])
        sums = by_row.new_zeros(2, domains).index_add_(1, batch.domain_ids, by_row)
        if measures.by_label is not None:
            measures.by_label.add(masked, batch.loss_mask, batch.label_ids)
        if measures.by_loop is not None:
            measures.by_loop.add(output, batch.loss_mask)
        return total, tokens.to(torch.int), {"sums": sums}

    return read
