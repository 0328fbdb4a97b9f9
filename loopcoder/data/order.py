"""The order in which a domain of our pipeline is read, by arithmetic alone.

A shard is a stretch of shuffled documents, so that any part of it can be read without an index.
An epoch is all shards, one after the other; a shard is its stretches, one after the other; a
stretch is the sequences that begin in it. Each of the three orders is a permutation of its own for
every epoch and seed. A stretch is a block of 64 MB, so all sequences that are read within some
steps lie in the same one. A smaller shard is one stretch (data.reader=shuffled), or has 16 or more
(packed), of which a run that changes its length loses at most one, but whose steps read from few
documents for long: with 2.9M tokens in sequences of 128 that costs 0.2 nats (docs/log.md 28).
A permutation is the stable sort
of numbers of Philox (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011), whose raw
stream NumPy guarantees, which it does not for `Generator.permutation`: the order outlives another
version of NumPy.

Another length. The first length that a domain is read at cuts its shards: a stretch begins where a
sequence of that length does. At another length sequence j of a stretch is its tokens [j S, j S +
S], as many as it has whole. So the stretches and their order stay, and a domain that changes its
length goes on with the next whole stretch: nothing of the one under way is given twice, and what
was not given of it is left out in this epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count, pairwise

import numpy as np
from numpy.typing import NDArray

from loopcoder.data.blocks import BLOCK_BYTES
from loopcoder.data.reader import part_of
from loopcoder.data.sampler import Given

_KEPT = 4
"""Epochs, shards and stretches whose order is kept: a batch can straddle the border of two."""
STRETCHES = 16
"""At least so many of them in a shard that is to have several, if each has..."""
_LEAST_TOKENS = 1 << 16
"""...so many tokens."""


class Order:
    """The sequences of one domain, at one length."""

    def __init__(
        self,
        tokens: Sequence[int],
        token_bytes: int,
        seq_length: int,
        seeds: tuple[int, ...],
        cut_for: int,
        stretches: int = STRETCHES,
    ):
        """
        Args:
            tokens: Of each shard.
            token_bytes: Of one token in a shard.
            seeds: What the order follows from.
            cut_for: The first length that the domain was read at.
            stretches: Of a shard that is smaller than as many blocks; 1: it has one for each block
                that it begins.
        """
        self.seq_length, self._cut_for, self._at_least = seq_length, cut_for, stretches
        self._seeds, self._token_bytes = seeds, token_bytes
        self._cut = (np.array(tokens, dtype=np.int64) - 1) // cut_for
        self._borders = lru_cache(maxsize=_KEPT)(self._cut_into_stretches)
        self._counts = lru_cache(maxsize=_KEPT)(self._sequences_of_stretches)
        self._shards = lru_cache(maxsize=_KEPT)(self._order_of_shards)
        self._stretches = lru_cache(maxsize=_KEPT)(self._order_of_stretches)
        self._stretch = lru_cache(maxsize=_KEPT)(self.permutation)
        self.sequences = self._cut
        """Sequences of each shard. [shards]"""
        if seq_length != cut_for:
            each = [self._counts(shard).sum() for shard in range(len(tokens))]
            self.sequences = np.array(each, dtype=np.int64)
        self.size = int(self.sequences.sum())
        """Sequences of an epoch."""

    @property
    def longest(self) -> int:
        """Tokens of the longest stretch."""
        return max(
            int(np.diff(self._borders(shard)).max(initial=0)) for shard in range(len(self._cut))
        )

    def place(self, epoch: int, index: int) -> tuple[int, int]:
        """Return the shard of a sequence of an epoch, and its first token there."""
        shard, stretch, index = self._within(epoch, index)
        count = int(self._counts(shard)[stretch])
        sequence = int(self._stretch(count, epoch, shard, stretch)[index])
        return shard, int(self._borders(shard)[stretch]) + sequence * self.seq_length

    def after(self, earlier: Order, sequences: int) -> tuple[int, int]:
        """Go on where the domain stood at another length.

        Args:
            earlier: The order at that length, with the same stretches.
            sequences: How many it gave, from the first epoch on.

        Returns:
            How many come before the next whole stretch at this length, and the sequences of the
            earlier length that are left out.
        """
        epoch, index = divmod(sequences, earlier.size)
        shard, stretch, given = earlier._within(epoch, index)
        shards, ends = self._shards(epoch)
        place = int(np.flatnonzero(shards == shard)[0])
        order, counts = self._stretches(epoch, shard)[0], self._counts(shard)
        done = int(np.flatnonzero(order == stretch)[0]) + (given > 0)
        start = int(ends[place] - self.sequences[shard] + counts[order[:done]].sum())
        left_out = int(earlier._counts(shard)[stretch]) - given if given else 0
        return epoch * self.size + start, left_out

    def stretches(self, epoch: int, index: int) -> Iterator[tuple[int, int, int]]:
        """Yield the stretches of the sequences from one of an epoch on, in their order and without
        an end, that of the sequence first: the shard, its first token, and the last label there."""
        at, within, _ = self._within(epoch, index)
        for later in count(epoch):
            shards = self._shards(later)[0].tolist()
            for shard in shards[shards.index(at) if later == epoch else 0 :]:
                borders, counts = self._borders(shard), self._counts(shard)
                order = self._stretches(later, shard)[0].tolist()
                is_first = (later, shard) == (epoch, at)
                for stretch in order[order.index(within) if is_first else 0 :]:
                    if counts[stretch]:
                        start = int(borders[stretch])
                        yield shard, start, start + int(counts[stretch]) * self.seq_length

    def permutation(self, count: int, *of: int) -> NDArray[np.int64]:
        """Return the order of `count` things in an epoch, or in a shard or a stretch of it."""
        stream = np.random.Philox(np.random.SeedSequence([*self._seeds, *of]))
        return np.argsort(stream.random_raw(count), kind="stable")

    def _within(self, epoch: int, index: int) -> tuple[int, int, int]:
        """Return the shard and the stretch of a sequence of an epoch, and its number there."""
        shard, index = part_of(*self._shards(epoch), self.sequences, index)
        return (shard, *part_of(*self._stretches(epoch, shard), self._counts(shard), index))

    def _order_of_shards(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = self.permutation(len(self.sequences), epoch)
        return order, np.cumsum(self.sequences[order])

    def _order_of_stretches(
        self, epoch: int, shard: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        counts = self._counts(shard)
        order = self.permutation(len(counts), epoch, shard)
        return order, np.cumsum(counts[order])

    def _sequences_of_stretches(self, shard: int) -> NDArray[np.int64]:
        """Return the sequences of each stretch of a shard. [stretches]"""
        return np.diff(self._borders(shard)) // self.seq_length

    def _cut_into_stretches(self, shard: int) -> NDArray[np.int64]:
        """Return the first token of each stretch of a shard, and the end of the last one.
        [stretches + 1]"""
        tokens = int(self._cut[shard]) * self._cut_for
        stretch = BLOCK_BYTES // self._token_bytes
        if self._at_least > 1:
            stretch = min(stretch, _power_of_two(max(tokens // self._at_least, _LEAST_TOKENS)))
        count = -(-tokens // stretch)
        firsts = -(-np.arange(count + 1, dtype=np.int64) * stretch // self._cut_for)
        return np.minimum(firsts * self._cut_for, tokens)


def continued(
    tokens: Sequence[int],
    token_bytes: int,
    seq_length: int,
    seeds: tuple[int, ...],
    before: Given,
    stretches: int = STRETCHES,
) -> tuple[Order, int, Given]:
    """Return the order of a domain that gave sequences before, where it goes on, and what every
    change of the length left out of it.

    Args:
        tokens: Of each shard.
        token_bytes: Of one token in a shard.
        seeds: What the order follows from.
        before: What the domain gave.
        stretches: As of `Order`.
    """
    cut_for = before[0][0] if before else seq_length

    def at(length: int) -> Order:
        return Order(tokens, token_bytes, length, seeds, cut_for, stretches)

    here, start, left_out = at(cut_for), 0, []
    for (length, sequences), (following, _) in pairwise([*before, (seq_length, 0)]):
        start += sequences
        if following != length:
            earlier, here = here, at(following)
            start, count = here.after(earlier, start)
            left_out.append((length, count))
    return here, start, tuple(left_out)


def _power_of_two(number: int) -> int:
    """Return the largest power of two that is not above a number."""
    return 1 << (number.bit_length() - 1)
