"""Sequences of a corpus by arithmetic: shard and offset follow from the number of the sequence.

A shard of our pipeline is a stretch of shuffled documents, so that it can be read without an index:
sequence i of a shard is its tokens [i S, i S + S], the last label included. Nothing is built or
held in memory that grows with the corpus.

The order. An epoch is all shards, one after the other; a shard is its stretches, one after the
other; a stretch is the sequences that begin in it. Each of the three orders is a permutation of its
own for every epoch, stage and seed. A stretch is a block of 64 MB, so all sequences that are read
within some steps lie in the same one; a small shard has 16 stretches or more. A permutation is the
stable sort of numbers of Philox (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011),
whose raw stream NumPy guarantees, which it does not for `Generator.permutation`: the order outlives
another version of NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from loopcoder.config.data import CacheConfig
from loopcoder.data.block_cache import Ahead, BlockCache, CachedFile
from loopcoder.data.blocks import BLOCK_BYTES, CheckedFile, read_digests
from loopcoder.data.corpus import Corpus, rebuild
from loopcoder.data.indexed import token_dtype
from loopcoder.data.reader import part_of, readable, sequences_by_shard
from loopcoder.errors import InputError
from loopcoder.storage.remote import Store

_OPEN = 4
"""Shards, and stretches, that are kept open: a batch can straddle the border of two."""
_STRETCHES = 16
"""At least so many of them in a shard, if each has..."""
_LEAST_TOKENS = 1 << 16
"""...so many tokens."""


class PackedReader:
    """Reads a corpus of our pipeline in blocks."""

    def __init__(
        self,
        corpus: Corpus,
        domain: str,
        seq_length: int,
        seeds: tuple[int, ...],
        *,
        verify: bool = True,
        cache: CacheConfig | None = None,
    ):
        """
        Args:
            seeds: What the order follows from.
            verify: Compare a block with its digest before it is used, if the corpus has digests.
            cache: What is kept here of shards that are in a store; None: the defaults.

        Raises:
            InputError: the shards are in a store and have no digests, or nothing can be kept here.
        """
        self._corpus, self._domain, self._seq_length = corpus, domain, seq_length
        self._seeds, self._verify = seeds, verify
        self._dtype = np.dtype(token_dtype(corpus.vocab_size))
        self._prefixes = corpus.prefixes(domain, "train")
        self.sequences = sequences_by_shard(corpus, domain, seq_length)
        self._file = lru_cache(maxsize=_OPEN)(self._open)
        self._shards = lru_cache(maxsize=_OPEN)(self._order_of_shards)
        self._stretches = lru_cache(maxsize=_OPEN)(self._order_of_stretches)
        self._stretch = lru_cache(maxsize=_OPEN)(self._permutation)
        self._ahead: Ahead | None = None
        self._in: tuple[int, int] | None = None
        if corpus.url is not None:
            self._read_from(corpus.url, cache or CacheConfig())

    def row(self, epoch: int, index: int) -> torch.Tensor:
        """Return the token ids of one sequence and its last label. [S+1], int64

        Raises:
            LoopcoderError: the block is damaged, or cannot be read.
            FileNotFoundError: the shard is gone.
        """
        shard, sequence = self.place(epoch, index)
        size = self._dtype.itemsize
        start = sequence * self._seq_length * size
        if self._ahead is not None and (shard, start // BLOCK_BYTES) != self._in:
            self._in = (shard, start // BLOCK_BYTES)
            self._ahead.want(islice(self.upcoming(epoch, index), self._num_ahead))
        with readable(self._prefixes[shard] + ".bin"):
            content = self._file(shard).read(start, (self._seq_length + 1) * size)
        return torch.from_numpy(np.frombuffer(content, dtype=self._dtype).astype(np.int64))

    def place(self, epoch: int, index: int) -> tuple[int, int]:
        """Return the shard of a sequence of an epoch, and its number there."""
        shards, ends = self._shards(epoch)
        shard, index = part_of(shards, ends, self.sequences, index)
        firsts = self._first_of_stretches(shard)
        stretches, ends = self._stretches(epoch, shard)
        stretch, index = part_of(stretches, ends, np.diff(firsts), index)
        count = int(firsts[stretch + 1] - firsts[stretch])
        return shard, int(firsts[stretch] + self._stretch(count, epoch, shard, stretch)[index])

    def upcoming(self, epoch: int, index: int) -> Iterator[tuple[int, int]]:
        """Yield the blocks that the sequences from one of an epoch on are read from, in their
        order, as (shard, block) and without an end; the first is that of the sequence."""
        at, _ = self.place(epoch, index)
        size = self._dtype.itemsize
        for later in count(epoch):
            shards = self._shards(later)[0].tolist()
            for shard in shards[shards.index(at) if later == epoch else 0 :]:
                firsts = self._first_of_stretches(shard)
                order = self._stretches(later, shard)[0].tolist()
                if (later, shard) == (epoch, at):
                    within = int(np.searchsorted(firsts, self.place(epoch, index)[1], "right")) - 1
                    order = order[order.index(within) :]
                for stretch in order:
                    first, last = int(firsts[stretch]), int(firsts[stretch + 1])
                    if first < last:
                        start = first * self._seq_length * size
                        stop = (last * self._seq_length + 1) * size
                        blocks = range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
                        yield from ((shard, block) for block in blocks)

    def _read_from(self, url: str, cache: CacheConfig) -> None:
        """Read shards that are in a store through a cache of this machine."""
        corpus = self._corpus
        if self._verify and corpus.digests(self._domain, 0) is None:
            raise InputError.of(
                f"the corpus {url} has no digests of its blocks",
                "what is read from a store is compared block by block before it is used",
                "data.verify=size, or data=corpus path=FOLDER of a local copy",
            )
        folder = corpus.dir.parents[1] / "blocks"
        self._cache = BlockCache(folder, cache.bytes, Store(url))
        self._ahead, self._num_ahead = Ahead(self._fetch), cache.ahead

    def _fetch(self, shard: int, block: int) -> None:
        """Fetch a block of a shard in a store, with one try."""
        file = self._open(shard)
        assert isinstance(file, CachedFile)
        file.fetch(block, pauses=())

    def _order_of_shards(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = self._permutation(len(self.sequences), epoch)
        return order, np.cumsum(self.sequences[order])

    def _order_of_stretches(
        self, epoch: int, shard: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        counts = np.diff(self._first_of_stretches(shard))
        order = self._permutation(len(counts), epoch, shard)
        return order, np.cumsum(counts[order])

    def _first_of_stretches(self, shard: int) -> NDArray[np.int64]:
        """Return the first sequence that begins in each stretch of a shard, and their number as the
        last entry. [stretches + 1]"""
        sequences = int(self.sequences[shard])
        tokens = sequences * self._seq_length
        stretch = _power_of_two(max(tokens // _STRETCHES, _LEAST_TOKENS))
        stretch = min(stretch, BLOCK_BYTES // self._dtype.itemsize)
        count = -(-tokens // stretch)
        firsts = -(-np.arange(count + 1, dtype=np.int64) * stretch // self._seq_length)
        return np.minimum(firsts, sequences)

    def _permutation(self, count: int, *of: int) -> NDArray[np.int64]:
        """Return the order of `count` things in an epoch, or in a shard or a stretch of it."""
        stream = np.random.Philox(np.random.SeedSequence([*self._seeds, *of]))
        return np.argsort(stream.random_raw(count), kind="stable")

    def _open(self, shard: int) -> CheckedFile | CachedFile:
        path = Path(self._prefixes[shard] + ".bin")
        size = self._corpus.shard_tokens(self._domain, "train")[shard] * self._dtype.itemsize
        fix, digests = rebuild(self._corpus.dir), None
        if self._verify and (beside := self._corpus.digests(self._domain, shard)):
            try:
                digests = read_digests(beside, size)
            except ValueError as error:
                why = "it was cut off or changed after it was built"
                raise InputError.of(str(error), why, fix) from error
        if self._corpus.url is not None:
            return CachedFile(self._cache, str(path.relative_to(self._corpus.dir)), size, digests)
        return CheckedFile(path, size, digests, fix)


def _power_of_two(number: int) -> int:
    """Return the largest power of two that is not above a number."""
    return 1 << (number.bit_length() - 1)
