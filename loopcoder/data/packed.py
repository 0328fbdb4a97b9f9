"""Sequences of a corpus by arithmetic: shard and offset follow from the number of the sequence.

Nothing is built or held in memory that grows with the corpus; the order is that of order.py.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from loopcoder.data.blocks import CheckedFile, read_digests
from loopcoder.data.corpus import Corpus, rebuild
from loopcoder.data.indexed import token_dtype
from loopcoder.data.order import continued
from loopcoder.data.reader import readable
from loopcoder.data.sampler import Given
from loopcoder.errors import InputError, counted

_OPEN = 4
"""Shards that are kept open: a batch can straddle the border of two."""


class PackedReader:
    """Reads a corpus of our pipeline in blocks."""

    def __init__(
        self,
        corpus: Corpus,
        domain: str,
        seq_length: int,
        seeds: tuple[int, ...],
        before: Given = (),
        *,
        verify: bool = True,
    ):
        """
        Args:
            seeds: What the order follows from.
            before: What the domain gave; it goes on there.
            verify: Compare a block with its digest before it is used, if the corpus has digests.
        """
        self._corpus, self._domain, self._seq_length = corpus, domain, seq_length
        self._verify = verify
        self._dtype = np.dtype(token_dtype(corpus.vocab_size))
        self._prefixes = corpus.prefixes(domain, "train")
        self._order, self.start, self.left_out = continued(
            corpus.shard_tokens(domain, "train"), self._dtype.itemsize, seq_length, seeds, before
        )
        self.sequences = self._order.sequences
        if not self._order.size:
            longest = self._order.longest
            raise InputError.of(
                f"no stretch of the domain '{domain}' has {counted(seq_length, 'token')}",
                f"a domain that changes its length goes on with whole stretches, and those that "
                f"sequences of {before[0][0]} have cut are of {longest} at most",
                f"seq_length={longest} or less in this stage of data.stages, or more data",
            )
        self._file = lru_cache(maxsize=_OPEN)(self._open)

    def epochs(self, sequences: int) -> float:
        """Return how often the domain was gone through after so many sequences of the stage."""
        return (self.start + sequences) / self._order.size

    def row(self, epoch: int, index: int) -> torch.Tensor:
        """Return the token ids of one sequence and its last label. [S+1], int64

        Raises:
            LoopcoderError: the block is damaged, or cannot be read.
            FileNotFoundError: the shard is gone.
        """
        shard, token = self.place(epoch, index)
        size = self._dtype.itemsize
        start = token * size
        with readable(self._prefixes[shard] + ".bin"):
            content = self._file(shard).read(start, (self._seq_length + 1) * size)
        return torch.from_numpy(np.frombuffer(content, dtype=self._dtype).astype(np.int64))

    def place(self, epoch: int, index: int) -> tuple[int, int]:
        """Return the shard of a sequence of an epoch, and its first token there."""
        return self._order.place(epoch, index)

    def _open(self, shard: int) -> CheckedFile:
        path = Path(self._prefixes[shard] + ".bin")
        size = self._corpus.shard_tokens(self._domain, "train")[shard] * self._dtype.itemsize
        fix, digests = rebuild(self._corpus.dir), None
        if self._verify and (beside := self._corpus.digests(self._domain, shard)):
            try:
                digests = read_digests(beside, size)
            except ValueError as error:
                why = "it was cut off or changed after it was built"
                raise InputError.of(str(error), why, fix) from error
        return CheckedFile(path, size, digests, fix)
