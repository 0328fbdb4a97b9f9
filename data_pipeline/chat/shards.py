"""Sequences on disk: shards of packed conversations, their masks and labels.

    OUT/chat-00003.bin .idx      one shard, whole sequences of exactly data.seq_length tokens and
                                 one token more, an empty document
    OUT/chat-00003.mask          which of its tokens are trained (loopcoder/data/mask.py)
    OUT/chat-00003.labels        what its documents are

A document is a conversation. What a sequence has left is filled inside its last conversation, in
front of the EOD, by tokens that are not trained.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.chat.packed import Entries, Packed, Split, name_of, packing_of
from data_pipeline.chat.rendered import Rendered, files_of
from data_pipeline.chat.template import Template
from data_pipeline.readers.conversations import LANGUAGE
from data_pipeline.shuffle.shards import Written
from data_pipeline.tasks.work import Work
from data_pipeline.tokenizer.count import Tokenizer
from loopcoder.data.indexed import BLOCKS, IndexedWriter, token_dtype
from loopcoder.data.labels import LABELS, LabelWriter
from loopcoder.data.mask import MASK, MASK_BLOCKS, MaskWriter

_BUFFER_TOKENS = 1 << 20
"""That are written at a time."""
_OPEN = 200
"""Chunks whose files are kept open."""


def shard_files(prefix: Path) -> list[Path]:
    """Return the files of a shard; the data come first."""
    suffixes = (".bin", ".idx", BLOCKS, LABELS, MASK, MASK_BLOCKS)
    return [prefix.with_name(prefix.name + suffix) for suffix in suffixes]


def write_sequences(work: Work, split: Split, sequences: range, prefix: Path) -> Written:
    """Write some sequences of a split as one shard.

    Raises:
        InputError: a file of the build is missing or was changed.
    """
    packed, vocab_size = work.result(Packed), work.result(Tokenizer).vocab_size
    prefix.parent.mkdir(parents=True, exist_ok=True)
    counts = np.zeros((len(packed.labels), 2), dtype=np.int64)
    labels = LabelWriter(len(packed.labels))
    with ExitStack() as opened:
        writer, mask = IndexedWriter(prefix, vocab_size), MaskWriter(prefix)
        opened.callback(writer.close)
        opened.callback(mask.close)
        sequence_of = _Sequences(work, split)
        opened.callback(sequence_of.close)
        for batch in _batches(sequence_of, sequences):
            writer.append(batch.ids, batch.lengths)
            mask.append(batch.trained)
            labels.append(batch.lengths, batch.labels)
            ones = np.ones_like(batch.lengths)
            np.add.at(counts, batch.labels, np.stack([ones, batch.lengths], axis=1))
        writer.finish()
        mask.finish()
        labels.finish(prefix.with_name(prefix.name + LABELS))
    documents, tokens = counts.sum(axis=0).tolist()
    return Written(
        prefix=prefix.name,
        documents=documents,
        tokens=tokens,
        overwritten_tokens=0,
        languages={LANGUAGE: {"documents": documents, "tokens": tokens}},
        labels={n: (row[0], row[1]) for n, row in enumerate(counts.tolist()) if row[0]},
    )


class _Batch(NamedTuple):
    ids: NDArray[Any]
    trained: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    """Tokens of each document."""
    labels: NDArray[np.int64]
    """Label of each document."""

    @classmethod
    def joined(cls, batches: list[_Batch]) -> _Batch:
        return cls(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))


def _batches(sequences: _Sequences, chosen: range) -> Iterator[_Batch]:
    """Yield sequences, some at a time; the last one is followed by an empty document."""
    waiting: list[_Batch] = []
    tokens = 0
    last = 0
    for number in chosen:
        waiting.append(sequences[number])
        tokens, last = tokens + len(waiting[-1].ids), int(waiting[-1].labels[-1])
        if tokens >= _BUFFER_TOKENS:
            yield _Batch.joined(waiting)
            waiting, tokens = [], 0
    ones = np.ones(1, dtype=np.int64)
    end = np.array([sequences.eod_id], dtype=sequences.dtype)
    waiting.append(_Batch(end, np.zeros(1, dtype=np.bool_), ones, last * ones))
    yield _Batch.joined(waiting)


class _Sequences:
    """The sequences of a split, read from the chunks in which their conversations are."""

    def __init__(self, work: Work, split: Split) -> None:
        self._packing = packing_of(work, split)
        entries = Entries.of(work)
        self._bases = entries.bases
        self._lengths = entries.entries["length"].astype(np.int64)
        # where each begins in the files of its chunk
        ends = np.cumsum(self._lengths)
        before = np.concatenate([[0], ends])[self._bases[:-1]]
        self._starts = ends - self._lengths - np.repeat(before, np.diff(self._bases))
        label_of = work.result(Packed).label_of
        kinds = {kind: label_of[name_of(kind)] for of in entries.kinds for kind in of}
        self._labels = entries.numbers_by(kinds)
        tokenizer = work.result(Tokenizer)
        self.dtype = np.dtype(token_dtype(tokenizer.vocab_size))
        self.eod_id = tokenizer.eod_id
        self._filler = work.result(Template).filler_id
        self._size = work.data.seq_length
        self._work = work
        self._chunk = lru_cache(maxsize=_OPEN)(self._open)

    def __getitem__(self, number: int) -> _Batch:
        """Return a sequence, filled up."""
        start, stop = self._packing.starts[number : number + 2].tolist()
        items = self._packing.items[start:stop]
        lengths = self._lengths[items]
        ids = np.full(self._size, self._filler, dtype=self.dtype)
        trained = np.zeros(self._size, dtype=np.bool_)
        chunks = np.searchsorted(self._bases, items, side="right") - 1
        at = 0
        places = zip(chunks.tolist(), self._starts[items].tolist(), lengths.tolist(), strict=True)
        for chunk, first, length in places:
            here = slice(at, at + length)
            ids[here], trained[here] = self._chunk(chunk).read(first, length, self.dtype)
            at += length
        if at < self._size:
            ids[at - 1], ids[-1] = self._filler, self.eod_id
            trained[at - 1] = False  # an EOD that a template has trained: it now follows fillers
            lengths[-1] += self._size - at
        return _Batch(ids, trained, lengths, self._labels[items])

    def _open(self, chunk: int) -> _Chunk:
        done = self._work.done(Rendered, chunk)
        # read in places only, so no more than the size is compared
        paths = (done.file(path, contents=False) for path in files_of(self._work, chunk)[:2])
        return _Chunk(*(os.open(path, os.O_RDONLY) for path in paths))

    def close(self) -> None:
        self._chunk.cache_clear()


@dataclass(frozen=True)
class _Chunk:
    """The open files of a chunk's ids and mask; closed with the last who holds it, since a cache
    lets go of them."""

    ids: int
    mask: int

    def read(
        self, first: int, count: int, dtype: np.dtype[Any]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return tokens [first, first + count)."""
        size = dtype.itemsize
        ids = np.frombuffer(os.pread(self.ids, count * size, first * size), dtype=dtype)
        return ids, np.frombuffer(os.pread(self.mask, count, first), dtype=np.bool_)

    def __del__(self) -> None:
        os.close(self.ids)
        os.close(self.mask)
