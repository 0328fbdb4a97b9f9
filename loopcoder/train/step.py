"""One optimizer step: gradient accumulation over microbatches through megatron's schedule, then the
update."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel.schedules import forward_backward_no_pipelining
from torch import Tensor

from loopcoder.data.batch import Batch
from loopcoder.model.probe import LoopProbe, Probe
from loopcoder.model.reuse import forget_fp8_copies
from loopcoder.parallel.schedule import run_chunks
from loopcoder.train.by_domain import loss_fields
from loopcoder.train.diagnostics import LoopDiagnostics, Several
from loopcoder.train.labels import LabelLosses
from loopcoder.train.state import TrainState


@dataclass(frozen=True)
class StepResult:
    """What one step brought; its tensors stay on the device until the step is logged."""

    sums: Tensor
    """Summed loss and number of valid tokens by domain, over all ranks. [2, domains]"""
    grad_norm: Tensor
    """Global norm of the averaged gradient before clipping. []"""
    lr: float
    probe: LoopProbe | None
    """What the loops did; None unless the step is logged."""
    by_label: LabelLosses | None
    """Sums by language and source; None unless the step is logged."""
    diagnostics: LoopDiagnostics | None = None
    """What `logging.diagnostics_interval` asks for."""

    def fields(self, domains: Sequence[str]) -> dict[str, float]:
        """Return the fields of a record; this waits for the device."""
        loss, tokens = self.sums.tolist()
        all_tokens = max(sum(tokens), 1.0)
        return {
            "loss": sum(loss) / all_tokens,
            "lr": self.lr,
            "grad_norm": self.grad_norm.item(),
            **loss_fields(domains, loss, tokens),
            **(self.by_label.fields("loss") if self.by_label else {}),
            **(self.probe.fields(all_tokens) if self.probe else {}),
            **(self.diagnostics.fields() if self.diagnostics else {}),
        }


def forward_backward(
    state: TrainState,
    microbatches: list[Batch],
    domains: int,
    probe: LoopProbe | None = None,
    by_label: LabelLosses | None = None,
    diagnostics: LoopDiagnostics | None = None,
) -> Tensor:
    """Compute the gradients of one step, and return sums of the loss by domain.

    Gradients are those of the loss summed over the valid tokens of the global batch; the update
    divides them by the number of these tokens, which makes the mean of the contract.

    Args:
        probe: measures the loops on the way; its sums are over all ranks afterwards.
        by_label: gets the sums of the loss by language and source, over all ranks as well.
        diagnostics: measures what the loops do to a few tokens, over all ranks as well.

    Returns:
        [2, domains] in fp32 on the device: summed loss and number of valid tokens, over all ranks.
    """
    state.ddp.zero_grad_buffer()
    state.optimizer.zero_grad()
    if by_label is not None:
        by_label.sums.zero_()
    device = state.ranks.device
    if state.chunks:
        step = partial(
            chunk_step,
            device=device,
            domains=domains,
            probe=probe,
            by_label=by_label,
            diagnostics=diagnostics,
        )
        sums = run_chunks(state.chunks, microbatches, step)
    else:
        sums = forward_backward_no_pipelining(
            forward_step_func=partial(
                _forward_step,
                device=device,
                domains=domains,
                probe=probe,
                by_label=by_label,
                diagnostics=diagnostics,
            ),
            data_iterator=iter(list(enumerate(microbatches))),
            model=state.ddp,
            num_microbatches=len(microbatches),
            seq_length=microbatches[0].tokens.shape[1],
            micro_batch_size=microbatches[0].tokens.shape[0],
        )
    total = torch.zeros(2, domains, device=device)
    for s in sums:  # only the last stage of a pipeline has any
        total += s["sums"]
    _sum_over_ranks(state, total)
    if by_label is not None:
        _sum_over_ranks(state, by_label.sums)
    if probe is not None:
        _sum_over_ranks(state, probe.sums)
        if state.config.sequence_parallel:  # each rank saw the gradient of its part of the sequence
            dist.all_reduce(probe.sums[1], group=state.ranks.groups.tp)
        probe.sums[0, -1] = total[0].sum()
    if diagnostics is not None:
        diagnostics.finish(state.network)
    return total


def _sum_over_ranks(state: TrainState, sums: Tensor) -> None:
    dist.all_reduce(sums, group=state.ranks.groups.dp_cp)
    if state.chunks:
        dist.all_reduce(sums, group=state.ranks.groups.pp)


def _forward_step(
    batches: Iterator[tuple[int, Batch]],
    model: Any,
    *,
    device: torch.device,
    domains: int,
    probe: LoopProbe | None,
    by_label: LabelLosses | None,
    diagnostics: LoopDiagnostics | None = None,
) -> Any:
    microbatch, host_batch = next(batches)
    batch = host_batch.to(device)
    probes = _probes(probe, diagnostics, microbatch, batch)
    loss = model(batch.tokens, batch.documents, batch.labels, probe=probes)
    return loss, partial(_loss, batch=batch, domains=domains, by_label=by_label)


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
    probe: LoopProbe | None,
    by_label: LabelLosses | None = None,
    diagnostics: LoopDiagnostics | None = None,
) -> Any:
    microbatch, host_batch = next(batches)
    batch = host_batch.to(device)
    probes = _probes(probe, diagnostics, microbatch, batch)
    loss = partial(_loss, batch=batch, domains=domains, by_label=by_label)
    return chunk(microbatch, batch, probe=probes), loss


def _probes(
    probe: LoopProbe | None, diagnostics: LoopDiagnostics | None, microbatch: int, batch: Batch
) -> Probe | None:
    """Tell what measures which microbatch comes, and return it."""
    if probe is not None:
        probe.loss_mask = batch.loss_mask
    if diagnostics is None:
        return probe
    diagnostics.at_batch(microbatch, batch)
    return diagnostics if probe is None else Several([probe, diagnostics])


def _loss(
    loss: Tensor, *, batch: Batch, domains: int, by_label: LabelLosses | None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return what megatron's schedule wants with calculate_per_token_loss: (sum, tokens, to
    report)."""
    masked = loss * batch.loss_mask
    tokens = batch.loss_mask.sum()
    by_row = torch.stack([masked.detach().sum(1), batch.loss_mask.sum(1)])
    sums = by_row.new_zeros(2, domains).index_add_(1, batch.domain_ids, by_row)
    if by_label is not None:
        by_label.add(masked, batch.loss_mask, batch.label_ids)
    return masked.sum(), tokens.to(torch.int), {"sums": sums}
