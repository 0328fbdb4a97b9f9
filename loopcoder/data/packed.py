"""Sequences of a corpus by arithmetic: shard and offset follow from the number of the sequence.

Nothing is built or held in memory that grows with the corpus; the order is that of order.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from loopcoder.config.data import CacheConfig
from loopcoder.data.block_cache import Ahead, BlockCache, CachedFile
from loopcoder.data.blocks import BLOCK_BYTES, CheckedFile, OpenRange, RangeFile, digests_of
from loopcoder.data.check_packed import refuse_length
from loopcoder.data.corpus import Corpus
from loopcoder.data.indexed import token_dtype
from loopcoder.data.labels import LABELS, STRIDE, LabelFile
from loopcoder.data.mask import MASK, MaskFile
from loopcoder.data.order import STRETCHES, continued
from loopcoder.data.places import ELSEWHERE, rebuild
from loopcoder.data.reader import Row, readable
from loopcoder.data.sampler import Given
from loopcoder.errors import InputError, counted
from loopcoder.storage.remote import Store

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
        cache: CacheConfig | None = None,
        stretches: int = STRETCHES,
    ):
        """
        Args:
            seeds: What the order follows from.
            before: What the domain gave; it goes on there.
            verify: Compare a block with its digest before it is used, if the corpus has digests.
            cache: What is kept here of shards that are in a store; None: the defaults.
            stretches: Of a small shard, as of `Order`.

        Raises:
            InputError: the shards are in a store and have no digests, or nothing can be kept here;
                the domain is packed for another length.
        """
        refuse_length(corpus, domain, seq_length)
        self._corpus, self._domain, self._seq_length = corpus, domain, seq_length
        self._verify = verify
        self._dtype = np.dtype(token_dtype(corpus.vocab_size))
        self._prefixes = corpus.prefixes(domain, "train")
        self._order, self.start, self.left_out = continued(
            corpus.shard_tokens(domain, "train"),
            self._dtype.itemsize,
            seq_length,
            seeds,
            before,
            stretches,
        )
        self.sequences = self._order.sequences
        if before and not self._order.size:
            longest = self._order.longest
            raise InputError.of(
                f"no stretch of the domain '{domain}' has {counted(seq_length, 'token')}",
                f"a domain that changes its length goes on with whole stretches, and those that "
                f"sequences of {before[0][0]} have cut are of {longest} at most",
                f"seq_length={longest} or less in this stage of data.stages, or more data",
            )
        self._file = lru_cache(maxsize=_OPEN)(self._open)
        self._labels = lru_cache(maxsize=_OPEN)(self._open_labels)
        self._masks = lru_cache(maxsize=_OPEN)(self._open_mask)
        # of their own, so that what is fetched ahead closes nothing that is being read
        self._coming = lru_cache(maxsize=_OPEN)(lambda s: (self._open(s), self._open_mask(s)))
        self._opens: OpenRange = CheckedFile
        self._ahead: Ahead | None = None
        self._in: tuple[int, int] | None = None
        if corpus.url is not None:
            self._read_from(corpus.url, cache or CacheConfig())

    def epochs(self, sequences: int) -> float:
        """Return how often the domain was gone through after so many sequences of the stage."""
        return (self.start + sequences) / self._order.size

    def row(self, epoch: int, index: int) -> Row:
        """Return one sequence.

        Raises:
            LoopcoderError: the block is damaged, or cannot be read.
            FileNotFoundError: the shard is gone.
        """
        (shard, start), size = self.place(epoch, index), self._dtype.itemsize
        # documents are counted from a multiple of STRIDE on, which lies in the same block
        back = start % STRIDE if self._corpus.has_labels else 0
        if self._ahead is not None and (shard, start * size // BLOCK_BYTES) != self._in:
            self._in = (shard, start * size // BLOCK_BYTES)
            self._ahead.want(islice(self.upcoming(epoch, index), self._num_ahead))
        with readable(self._prefixes[shard] + ".bin"):
            content = self._file(shard).read(
                (start - back) * size, (back + self._seq_length + 1) * size
            )
        ids = np.frombuffer(content, dtype=self._dtype)
        with readable(self._prefixes[shard] + LABELS):
            labels = self._label_ids(shard, start, ids[:back], ids[back:])
        trained = None
        with readable(self._prefixes[shard] + MASK):
            if (mask := self._masks(shard)) is not None:
                trained = torch.from_numpy(mask.of_labels(start, self._seq_length))
        return Row(torch.from_numpy(ids[back:].astype(np.int64)), torch.from_numpy(labels), trained)

    def place(self, epoch: int, index: int) -> tuple[int, int]:
        """Return the shard of a sequence of an epoch, and its first token there."""
        return self._order.place(epoch, index)

    def upcoming(self, epoch: int, index: int) -> Iterator[tuple[int, int]]:
        """Yield the blocks that the sequences from one of an epoch on are read from, in their
        order, as (shard, block) and without an end; the first is that of its stretch."""
        size = self._dtype.itemsize
        for shard, first, last in self._order.stretches(epoch, index):
            for block in range(first * size // BLOCK_BYTES, last * size // BLOCK_BYTES + 1):
                yield shard, block

    def _read_from(self, url: str, cache: CacheConfig) -> None:
        """Read shards that are in a store through a cache of this machine."""
        folder = self._corpus.dir
        if self._verify and self._corpus.digests(self._domain, 0) is None:
            raise InputError.of(
                f"the corpus {url} has no digests of its blocks",
                "what is read from a store is compared block by block before it is used",
                f"data.verify=size, or {ELSEWHERE} of a local copy",
            )
        blocks = BlockCache(folder.parents[1] / "blocks", cache.bytes, Store(url))

        def cached(path: Path, *rest: Any, **more: Any) -> CachedFile:
            return CachedFile(blocks, str(path.relative_to(folder)), *rest, **more)

        self._opens = cached
        self._ahead, self._num_ahead = Ahead(self._fetch), cache.ahead

    def _fetch(self, shard: int, block: int) -> None:
        """Fetch a block of a shard in a store, with one try, and what its mask has of it."""
        file, mask = self._coming(shard)
        assert isinstance(file, CachedFile)
        file.fetch(block, pauses=())
        if mask is not None:
            last = self._corpus.shard_tokens(self._domain, "train")[shard] - 2  # that has a label
            mask.of_labels(min(block * BLOCK_BYTES // self._dtype.itemsize, last), 1)

    def _label_ids(
        self, shard: int, start: int, before: NDArray[Any], ids: NDArray[Any]
    ) -> NDArray[np.int64]:
        """Return the labels of a sequence, see `LabelFile.of_sequence`."""
        labels = self._labels(shard)
        if labels is None:
            return np.full(self._seq_length, self._corpus.domains.index(self._domain))
        return labels.of_sequence(start, before, ids, self._corpus.eod_id)

    def _open_labels(self, shard: int) -> LabelFile | None:
        return self._corpus.label_file(
            self._domain, "train", shard, verify=self._verify, opens=self._opens
        )

    def _open_mask(self, shard: int) -> MaskFile | None:
        return self._corpus.mask_file(
            self._domain, "train", shard, verify=self._verify, opens=self._opens
        )

    def _open(self, shard: int) -> RangeFile:
        path = Path(self._prefixes[shard] + ".bin")
        size = self._corpus.shard_tokens(self._domain, "train")[shard] * self._dtype.itemsize
        fix, digests = rebuild(self._corpus.dir), None
        if self._verify and (beside := self._corpus.digests(self._domain, shard)):
            digests = digests_of(beside, size, fix)
        return self._opens(path, size, digests, fix)
