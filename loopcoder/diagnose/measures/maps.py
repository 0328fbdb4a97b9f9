"""Attention maps of some queries at a time, as log-probabilities.

The first token of a document draws much of the attention in many models, so every measure is taken
with it and without it. Probabilities of the other keys, as a distribution of their own, and of the
first key against all others say both; and they keep their digits where the first key has nearly
everything, which 1 - p would lose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from loopcoder.diagnose.measures.precision import precise

ABSENT = -1e30
"""Stands for log 0: its exponential is 0, and 0 times it is 0 and not NaN."""
MAPS_AT_ONCE = 3
"""How many maps of a chunk exist at a time at most."""


@dataclass(frozen=True)
class LoopAttention:
    """What the attention map of one layer in one loop is computed from.

    Without `shared_k` the map is causal over the loop's own keys, as in the first loop and, with
    `kv_sharing=own`, in all. With it, the map is g times the causal map over loop 1's keys and 1-g
    times the window map, t-window <= s <= t, over its own.
    """

    q: Tensor
    """Queries after RoPE, of the heads given. [S, B, H, d]"""
    k: Tensor
    """The loop's own keys after RoPE; query head h reads key head h // (H/G). [S, B, G, d]"""
    shared_k: Tensor | None
    """Loop 1's keys after RoPE. [S, B, G, d]"""
    gate: Tensor | None
    """Weight of the causal map over the shared keys, after the sigmoid. [S, B, H]"""
    window: int
    """Keys to the left of the query that the window map reaches, besides the query's own."""
    scale: float
    """Factor of the scores, 1/sqrt(d)."""

    def __post_init__(self) -> None:
        if (self.shared_k is None) != (self.gate is None):
            raise ValueError("shared keys and a gate come together: a mixture needs both")

    @cached_property
    def global_keys(self) -> Tensor:
        """Keys of the causal map, in the precision of the measures. [S, B, G, d]"""
        return precise(self.k if self.shared_k is None else self.shared_k)

    @cached_property
    def window_keys(self) -> Tensor:
        """Keys of the window map, in the precision of the measures. [S, B, G, d]"""
        return precise(self.k)


@dataclass(frozen=True)
class Queries:
    """Neighbouring queries and the keys that they may see between them."""

    begin: int
    end: int
    first_key: int
    """The earliest key that one of them sees; the last is end - 1."""
    start: Tensor
    """First token of each one's document. [B, c]"""

    @cached_property
    def index(self) -> Tensor:
        """[c]"""
        return torch.arange(self.begin, self.end, device=self.start.device)

    @cached_property
    def alone(self) -> Tensor:
        """Whether a query begins its document, so that there is no other key. [B, c]"""
        return self.start == self.index

    @cached_property
    def hidden(self) -> Tensor:
        """Keys that a query does not see, or that are the first of its document; but of a query
        that has no other key its own is left, so that no row is empty. [B, 1, c, keys]"""
        key = torch.arange(self.first_key, self.end, device=self.start.device)
        query = self.index[:, None]
        other = (key > self.start[..., None]) | (key == query)
        return ~(other & (key <= query))[:, None]


@dataclass(frozen=True)
class LogMap:
    """Log-probabilities of the queries of a chunk; ABSENT where there is none."""

    others: Tensor
    """Of the keys but the first of the document, which sum to one. [B, H, c, keys]"""
    first: Tensor
    """Of that first key. [B, H, c]"""
    rest: Tensor
    """Of all the others together. [B, H, c]"""


def chunks(document_start: Tensor, size: int) -> Iterator[Queries]:
    """Yield all queries, `size` at a time: the last first, whose maps are the largest, so that
    the memory of these does for all that follow.

    Args:
        document_start: index of the first token of each position's document. [B, S]
    """
    begins = range(0, document_start.shape[1], size)
    # Along a row it does not fall: no later query sees an earlier key than the first of a chunk.
    first_keys = document_start[:, ::size].amin(0).tolist()
    for begin, first_key in zip(reversed(begins), reversed(first_keys), strict=True):
        start = document_start[:, begin : begin + size]
        yield Queries(begin, begin + start.shape[1], first_key, start)


def queries_per_chunk(
    batch: int, seq_length: int, heads: int, *, element_bytes: int, budget_bytes: int
) -> int:
    """Return how many queries can be at work within a budget of memory; at least one.

    Args:
        heads: those given, of this rank.
        element_bytes: 4 in fp32, 8 in float64.
    """
    maps = MAPS_AT_ONCE * heads * element_bytes
    hidden = 2  # one byte for each key, and one while it is made
    return max(1, budget_bytes // ((maps + hidden) * batch * seq_length))


def log_map(x: LoopAttention, queries: Queries) -> LogMap:
    """Compute the map of some queries."""
    causal = _branch(x, queries, x.global_keys, reach=queries.end)
    if x.gate is None:
        return causal
    near = _branch(x, queries, x.window_keys, reach=x.window)
    gate = precise(x.gate[queries.begin : queries.end]).permute(1, 2, 0)
    log_g, log_not_g = gate.log().clamp_min(ABSENT), torch.log1p(-gate).clamp_min(ABSENT)
    first = torch.logaddexp(log_g + causal.first, log_not_g + near.first)
    rest = torch.logaddexp(log_g + causal.rest, log_not_g + near.rest)
    # Of the mixture's other keys, the causal map has e^odds times what the window map has.
    odds = (log_g + causal.rest) - (log_not_g + near.rest)
    others = causal.others.add_(logsigmoid(odds)[..., None])
    inside = others[..., -near.others.shape[-1] :]
    torch.logaddexp(inside, near.others.add_(logsigmoid(-odds)[..., None]), out=inside)
    return LogMap(others, first, rest)


def scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Return scale * <q, k> for all pairs of queries and keys.

    16-bit factors have exact products in fp32, so that nothing is lost but in the sum.

    Args:
        q: [c, B, H, d]
        k: [keys, B, G, d]

    Returns:
        [B, H, c, keys]
    """
    queries, batch, heads, width = q.shape
    keys, _, groups, _ = k.shape
    rows = precise(q).view(queries, batch, groups, -1, width).permute(1, 2, 3, 0, 4)
    rows = rows.reshape(batch * groups, -1, width)
    columns = precise(k).permute(1, 2, 3, 0).reshape(batch * groups, width, keys)
    out = rows.new_empty(batch * groups, rows.shape[1], keys)
    torch.baddbmm(out, rows, columns, beta=0, alpha=scale, out=out)
    return out.view(batch, heads, queries, keys)


def _branch(x: LoopAttention, queries: Queries, k: Tensor, *, reach: int) -> LogMap:
    """Compute one softmax, over the keys that are not further to the left than `reach`."""
    first_key = max(queries.first_key, queries.begin - reach)
    nearest = queries.index - reach
    key = torch.arange(first_key, queries.end, device=k.device)
    hidden = queries.hidden[..., first_key - queries.first_key :] | (key < nearest[:, None])

    found = scores(x.q[queries.begin : queries.end], k[first_key : queries.end], x.scale)
    column = (queries.start - first_key).clamp_min(0)[:, None, :, None]
    first_score = found.gather(-1, column.expand(*found.shape[:3], 1))[..., 0]
    found.masked_fill_(hidden, ABSENT)
    largest = found.max(-1)
    others = torch.log_softmax(found, -1)
    # log-sum-exp of the others from the largest, whose log p is small and so has all its digits.
    total = largest.values - others.gather(-1, largest.indices[..., None])[..., 0]
    odds = (first_score - total).where((queries.start >= nearest)[:, None], ABSENT)
    odds = odds.masked_fill(queries.alone[:, None], -ABSENT)
    return LogMap(others, logsigmoid(odds), logsigmoid(-odds))
