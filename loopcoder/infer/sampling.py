"""The next token of each sequence of a batch, drawn from its logits on their device."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from loopcoder.infer.request import Sampling, Token


class Draws:
    """How one request draws its tokens.

    It has numbers of its own, so that what runs beside it in a batch changes no draw.
    """

    def __init__(self, sampling: Sampling, logprobs: int | None = None):
        """
        Args:
            logprobs: As in a Request.
        """
        self.sampling, self.logprobs = sampling, logprobs
        seed = sampling.seed
        # of 64 bits, because Random takes the absolute value: -1 would draw what 1 does
        self._numbers = random.Random(None if seed is None else seed % 2**64)

    @property
    def is_greedy(self) -> bool:
        return self.sampling.temperature == 0

    def next_number(self) -> float:
        """Return the number in [0, 1) that decides the next token."""
        return self._numbers.random()


def next_tokens(logits: Tensor, rows: Sequence[Draws]) -> list[Token]:
    """Draw a token for each row.

    Args:
        logits: fp32, [B, vocabulary].
        rows: How each is drawn, B of them.

    Returns:
        the tokens with what they tell of log-probabilities. A greedy token is the first of its
        `top`, and with it the most probable one; the lowest id of several.

    Raises:
        FloatingPointError: logits are not finite, so that nothing can be drawn.
    """
    peak = logits.amax(-1)
    ids = logits.argmax(-1)
    drawn = [b for b, row in enumerate(rows) if not row.is_greedy]
    if drawn:
        at = torch.tensor(drawn, device=logits.device)
        numbers = [rows[b].next_number() for b in drawn]
        ids[at] = draw(logits[at], [rows[b].sampling for b in drawn], numbers)
    if all(row.logprobs is None for row in rows):
        found = on_host(peak[:, None], ids[:, None])
        told = [Token(int(token)) for _, token in found]
    else:
        most = max(row.logprobs or 0 for row in rows)
        values = logprobs(logits, ids, most)
        found = on_host(peak[:, None], ids[:, None], *values)
        told = [
            Token(int(token)) if row.logprobs is None else as_token(int(token), rest, row.logprobs)
            for (_, token, *rest), row in zip(found, rows, strict=True)
        ]
    if not all(math.isfinite(largest) for largest, *_ in found):
        raise FloatingPointError("the logits of the model are not finite")
    return told


def draw(logits: Tensor, samplings: Sequence[Sampling], numbers: Sequence[float]) -> Tensor:
    """Invert the distribution function of each row, with tokens in order of their probability.

    In that order every limit keeps a beginning, and all together the shortest of them.

    Args:
        logits: fp32, [B, vocabulary].
        samplings: Of each row, with a temperature above 0.
        numbers: In [0, 1), of each row.

    Returns:
        ids, [B].
    """
    size, device = logits.shape[-1], logits.device
    limits = [
        (s.temperature, min(s.top_k or size, size), s.top_p, s.min_p, number)
        for s, number in zip(samplings, numbers, strict=True)
    ]
    table = torch.tensor(limits, dtype=torch.float64).to(device, non_blocking=True)[..., None]
    temperature, top_k, top_p, min_p, number = table.unbind(1)
    values, ids = best(logits, max(int(limit[1]) for limit in limits))
    # in fp64, in which no temperature above 0 makes inf - inf, and sums are exact enough
    scaled = (values.double() - values[:, :1]) / temperature
    rank = torch.arange(values.shape[-1], device=device)
    scaled = scaled.masked_fill(rank >= top_k, -math.inf)
    probabilities = scaled.softmax(-1)
    sums = probabilities.cumsum(-1)
    before = sums - probabilities
    kept = (rank < top_k) & (before < top_p) & (probabilities >= min_p * probabilities[:, :1])
    last = kept.sum(-1, keepdim=True).clamp_min(1) - 1
    wanted = number * sums.gather(-1, last)
    chosen = torch.searchsorted(sums, wanted, right=True).minimum(last)
    return ids.gather(-1, chosen)[:, 0]


def best(logits: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return the largest logits of each row and their ids, largest first; of equal ones the lowest
    id comes first.

    Args:
        logits: fp32, [B, vocabulary].
        number: At most the vocabulary.

    Returns:
        values and ids, [B, number].
    """
    if number == logits.shape[-1]:
        values, ids = logits.sort(stable=True, dim=-1, descending=True)
        return values, ids
    # integers in the order of the floats (+ 0.0 makes zeros alike), then of falling ids: no two
    # are equal, and topk promises no order for what is
    bits = (logits + 0.0).view(torch.int32).long()
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    place = torch.arange(logits.shape[-1], device=logits.device)
    ids = ((ordered << 32) - place).topk(number, -1).indices
    return logits.gather(-1, ids), ids


def logprobs(logits: Tensor, ids: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities in nats: of some tokens, and of the most probable ones.

    Args:
        logits: fp32, [B, vocabulary].
        ids: [B].
        number: How many of the most probable; at most the vocabulary.

    Returns:
        those of `ids` [B, 1], of the most probable [B, number], and their ids [B, number].
    """
    total = logits.logsumexp(-1, keepdim=True)
    own = logits.gather(-1, ids[:, None]) - total
    if number == 0:
        return own, logits[:, :0], ids[:, None][:, :0]
    values, top = best(logits, number)
    return own, values - total, top


def as_token(token: int, told: Sequence[float], number: int) -> Token:
    """Return a token with a row of what `logprobs` returned, side by side.

    Args:
        number: How many of the most probable tokens it has; the row may have more.
    """
    own, most = told[0], (len(told) - 1) // 2
    values, ids = told[1 : 1 + number], told[1 + most : 1 + most + number]
    top = tuple((int(i), value) for i, value in zip(ids, values, strict=True))
    return Token(token, own, top)


def on_host(*columns: Tensor) -> list[list[float]]:
    """Return columns side by side, in one copy; fp64 holds fp32 and ids exactly."""
    rows: list[list[float]] = torch.cat([c.double() for c in columns], -1).tolist()
    return rows
