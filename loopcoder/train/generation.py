"""Continue token ids by the trainer's own forward pass, in whatever layout a run has.

Nothing is kept between tokens: each one costs a forward pass over all rows at their full length. In
return it needs nothing but what training has, so it works wherever that does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from loopcoder.config.fields import next_multiple
from loopcoder.data.batch import Batch, make_batch
from loopcoder.model.reuse import forget_fp8_copies
from loopcoder.parallel.joined import joined
from loopcoder.parallel.schedule import run_chunks
from loopcoder.train.state import TrainState

Choose = Callable[[Tensor], Tensor]
"""Chooses a token for every row from its logits: [B, V] in fp32 to [B]. One rank calls it."""


@torch.no_grad()
def continued(
    state: TrainState,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    choose: Choose,
    *,
    eod: int,
    vocab_size: int,
    ends: Collection[int] = (),
    multiple: int = 1,
    before_token: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """Continue prompts, as whole documents, up to an end or by `new_tokens`. Every rank must
    call it and gets the same; the network should be in evaluation mode.

    Args:
        prompts: ids of each, one at least.
        eod: Token that ends a document, which is part of what is returned.
        vocab_size: Tokens that there are; the head has more rows.
        ends: Further tokens that end one, as a turn of a conversation.
        multiple: That the length of sequences is to be a multiple of.
        before_token: is called on every rank before each forward pass, and may raise.
    """
    device = state.ranks.device
    first = torch.tensor([len(ids) for ids in prompts])
    length = next_multiple(int(first.max()) + new_tokens, multiple)
    rows = torch.full((len(prompts), length + 1), eod)
    for row, ids in zip(rows, prompts, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    index = torch.arange(len(prompts))
    # what comes after a token changes nothing before it: the end of a row may hold anything
    batch = make_batch(rows, index, torch.zeros_like(index), eod, isolate_documents=False)
    batch = batch.to(device)
    index, first = index.to(device), first.to(device)
    has_ended = torch.zeros_like(index, dtype=torch.bool)
    all_ends = torch.tensor([*{eod, *ends}], device=device)
    forget_fp8_copies(state.network.used_in_every_loop())
    new: list[Tensor] = []
    while len(new) < new_tokens and not has_ended.all():
        before_token()
        logits = _next_logits(state, batch, first + len(new) - 1)
        token = torch.zeros_like(index)
        if logits is not None and state.ranks.tp_rank == state.ranks.dp_rank == 0:
            token = choose(logits[:, :vocab_size].float()).to(token)
        dist.all_reduce(token)  # one rank has it
        batch.tokens[index, first + len(new)] = token
        has_ended |= torch.isin(token, all_ends)
        new.append(token)
    return [_up_to({eod, *ends}, ids) for ids in torch.stack(new, 1).tolist()]


def _up_to(ends: set[int], ids: list[int]) -> list[int]:
    return ids[: next((place + 1 for place, i in enumerate(ids) if i in ends), len(ids))]


def _next_logits(state: TrainState, batch: Batch, last: Tensor) -> Tensor | None:
    """Return the logits at one position of every row, on the last pipeline stage. [B, V]"""
    if state.chunks:
        found: list[Tensor] = []
        step = partial(_chunk_logits, last=last, found=found)
        # a pipeline takes at least as many microbatches as it has stages
        batches = [batch] * state.ranks.groups.pp.size()
        run_chunks(state.chunks, batches, step, forward_only=True)
        part = found[0] if found else None
    else:
        part = _at(last, state.network(batch.tokens, batch.documents))
    return None if part is None else joined(part, -1, state.ranks.groups.tp)


def _chunk_logits(
    batches: Iterator[tuple[int, Batch]], chunk: Any, *, last: Tensor, found: list[Tensor]
) -> Any:
    microbatch, batch = next(batches)
    out = chunk(microbatch, batch, reads_logits=True)
    if chunk.ends_in_loss and microbatch == 0:
        found.append(_at(last, out))
    one = torch.ones((), dtype=torch.int, device=batch.tokens.device)
    return out, lambda tensor: (tensor.new_zeros(()), one, {})


def _at(positions: Tensor, logits: Tensor) -> Tensor:
    """Pick a position of every row from [S, B, V], for logits of [B, V]."""
    return logits[positions, torch.arange(len(positions), device=logits.device)]
