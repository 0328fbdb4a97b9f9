"""What the attention maps of a loop look like, and how they differ from those of the loop before.

Maps are made for some queries at a time and thrown away: memory is bounded by the chunk, not by
S x S. Measures are in nats, in fp32 or in float64 where the queries are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loopcoder.diagnose.measures.maps import LogMap, LoopAttention, Queries, chunks, log_map, scores
from loopcoder.diagnose.measures.precision import precise
from loopcoder.diagnose.measures.rank import rank_of_gram

ENTROPIES = ("entropy", "entropy_no_first")
CHANGES = ("change", "change_no_first")


@dataclass(frozen=True)
class AttentionValues:
    """Sums over the heads given, so that tensor-parallel ranks add theirs up and divide by all."""

    entropy: Tensor
    """-sum A log A over the keys of a query. [S, B]"""
    entropy_no_first: Tensor
    """The same of A without the document's first key, scaled to sum 1; 0 up to rounding where
    not `has_others`. [S, B]"""
    change: Tensor | None
    """KL(A(r) || A(r-1)); None without a loop before. [S, B]"""
    change_no_first: Tensor | None
    """The same of both maps without the first key, each scaled to sum 1; 0 up to rounding
    where not `has_others`. [S, B]"""
    has_others: Tensor
    """Where the `no_first` variants are defined: the query has another key than the document's
    first, which it is itself otherwise. [S, B] bool"""


@torch.no_grad()
def attention_sums(
    now: LoopAttention, before: LoopAttention | None, document_start: Tensor, *, chunk: int
) -> AttentionValues:
    """Measure the maps of one layer in one loop, and their change from the loop before.

    KL is infinite where this loop attends to a key beyond the window and the gate of the loop
    before is exactly 0.

    Args:
        now, before: of loops r and r-1, the same heads.
        document_start: index of the first token of each position's document (`Documents.start`).
            [B, S]
        chunk: queries at a time (`maps.queries_per_chunk`).
    """
    like = precise(now.q[:0])
    names = ENTROPIES if before is None else ENTROPIES + CHANGES
    sums = {name: like.new_empty(now.q.shape[:2]) for name in names}
    for queries in chunks(document_start, chunk):
        values = _chunk_values(now, before, queries)
        for name, value in zip(names, values, strict=True):
            sums[name][queries.begin : queries.end] = value.sum(1).transpose(0, 1)
    index = torch.arange(len(now.q), device=document_start.device)
    return AttentionValues(
        entropy=sums["entropy"],
        entropy_no_first=sums["entropy_no_first"],
        change=sums.get("change"),
        change_no_first=sums.get("change_no_first"),
        has_others=(document_start < index).transpose(0, 1),
    )


@torch.no_grad()
def head_vectors(x: LoopAttention, document_start: Tensor, queries: Tensor) -> Tensor:
    """Return the whole maps of some queries, all branches mixed.

    Args:
        document_start: [B, S]
        queries: positions, of all sequences [Q] or of each one [Q, B].

    Returns:
        probabilities of all S keys. [Q, B, H, S]
    """
    batch, seq_length = document_start.shape
    rows = torch.arange(batch, device=document_start.device)
    if queries.ndim == 1:
        queries = queries[:, None].expand(-1, batch)
    query = queries.transpose(0, 1)[..., None]
    key = torch.arange(seq_length, device=document_start.device)
    start = document_start.gather(1, query[..., 0])[..., None]
    visible = (key >= start) & (key <= query)
    q = x.q[queries, rows]
    vectors = _softmax(q, x.global_keys, visible, x.scale)
    if x.gate is not None:
        near = _softmax(q, x.window_keys, visible & (key >= query - x.window), x.scale)
        gate = precise(x.gate[queries, rows]).permute(1, 2, 0)[..., None]
        vectors = gate * vectors + (1 - gate) * near
    return vectors.permute(2, 0, 1, 3)


@torch.no_grad()
def head_diversity(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return how different the heads of a query look.

    The vectors are probabilities and are taken as they are: neither scaled nor centred.

    Args:
        vectors: one attention map per head, of all heads. [..., H, S]

    Returns:
        effective rank of the H x S matrix, and the mean cosine of two different heads, NaN for one
        head. float64, [...] each
    """
    rows = vectors.double()
    gram = rows @ rows.mT
    length = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    cosine = gram / length[..., :, None] / length[..., None, :]
    heads = vectors.shape[-2]
    off_diagonal = cosine.sum((-2, -1)) - cosine.diagonal(dim1=-2, dim2=-1).sum(-1)
    return rank_of_gram(gram), off_diagonal / (heads * (heads - 1) or torch.nan)


def _chunk_values(
    now: LoopAttention, before: LoopAttention | None, queries: Queries
) -> tuple[Tensor, ...]:
    """Return the entropies with and without the first key and, with a loop before, the changes;
    [B, H, c] each. What is large is gone when it returns."""
    here = log_map(now, queries)
    if before is None:
        return _entropies(here, here.others.exp())
    there = log_map(before, queries)
    p = here.others.exp()
    change, change_no_first = _divergences(here, there, p)
    change.masked_fill_(_is_infinite(now, before, queries, but_first=False), torch.inf)
    change_no_first.masked_fill_(_is_infinite(now, before, queries, but_first=True), torch.inf)
    return *_entropies(here, p), change, change_no_first


def _entropies(x: LogMap, p: Tensor) -> tuple[Tensor, Tensor]:
    """Return the entropy with and without the first key, [B, H, c]; uses up `x.others`.

    With w = 1 - p_first it is H = w (H' - log w) - p_first log p_first.
    """
    others = -x.others.mul_(p).sum(-1)
    return x.rest.exp() * (others - x.rest) - x.first.exp() * x.first, others


def _divergences(x: LogMap, y: LogMap, p: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(x || y) with and without the first key, [B, H, c]; uses up `y.others`.

    The parts are KL of first key against the rest, and w times that among the rest.
    """
    others = torch.sub(x.others, y.others, out=y.others).mul_(p).sum(-1)
    of_first = x.first.exp() * (x.first - y.first)
    return of_first + x.rest.exp() * (others + x.rest - y.rest), others


def _is_infinite(
    now: LoopAttention, before: LoopAttention, queries: Queries, *, but_first: bool
) -> Tensor:
    """Say where `now` attends to a key that `before` does not: [B, H, c] bool."""
    part = slice(queries.begin, queries.end)
    if before.gate is None:
        return torch.zeros((), dtype=torch.bool, device=queries.start.device)
    earliest = queries.start + 1 if but_first else queries.start
    beyond = (earliest < queries.index - before.window)[:, None]
    unseen = (before.gate[part] == 0).permute(1, 2, 0) & beyond
    return unseen if now.gate is None else unseen & (now.gate[part] > 0).permute(1, 2, 0)


def _softmax(q: Tensor, k: Tensor, visible: Tensor, scale: float) -> Tensor:
    """Return probabilities [B, H, Q, S] over the keys that are `visible` [B, Q, S]."""
    return scores(q, k, scale).masked_fill_(~visible[:, None], -torch.inf).softmax(-1)
