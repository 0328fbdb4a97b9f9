"""What the global batch of a step consists of: its sequences, and the documents in each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from loopcoder.config.schema import Config
from loopcoder.data.batch import Batch
from loopcoder.data.blend import Blend, blend_at
from loopcoder.data.corpus import Corpus
from loopcoder.data.loader import step_data
from loopcoder.data.sampler import Position, advance


@dataclass(frozen=True)
class Piece:
    """What a sequence has of one document."""

    start: int
    """Place of its first token in the sequence, from 0."""
    ids: NDArray[np.int64]
    """Its token ids. [tokens]"""
    ends: bool
    """Its end-of-document token is in the sequence."""
    trained: int
    """Tokens of it that count in the loss of the sequence; its first one never does."""
    label: int | None
    """Index of the document's label in those of the corpus; None: the sequence begins with the end
    of a document, of which it predicts nothing."""


@dataclass(frozen=True)
class Row:
    """One sequence of a global batch."""

    sample: int
    """Its number in the data stage."""
    domain: str
    epoch: int
    """Of the domain, from 0."""
    pieces: list[Piece]
    tokens: NDArray[np.int64]
    """Predicted tokens of each label of the corpus. [labels]"""


def rows_of_step(config: Config, corpus: Corpus, position: Position) -> Iterator[Row]:
    """Yield the sequences of the step at a position, in the order in which they are dealt out to
    the data-parallel ranks.

    Only one microbatch is held in memory, whatever the size of the global batch.

    Raises:
        InputError: the corpus cannot give what the stage asks for, or is damaged.
        LoopcoderError: it cannot be read.
    """
    only_these = replace(config.data, cache=replace(config.data.cache, ahead=0))
    config = replace(config, data=only_these)
    _, size = advance(config, position)
    parts, blend = size // config.train.micro_batch_size, blend_at(config, corpus, position)
    for part in range(parts):
        # with as many ranks as there are microbatches, each has one
        data = step_data(config, corpus, position, part, parts, lambda _: blend)
        for batch in data.microbatches:
            yield from _rows(batch, corpus, blend)


def _rows(batch: Batch, corpus: Corpus, blend: Blend) -> Iterator[Row]:
    for sample, domain, ids, labels, mask in zip(
        batch.sample_ids.tolist(),
        batch.domain_ids.tolist(),
        batch.tokens.numpy(),
        batch.label_ids.numpy(),
        batch.loss_mask.numpy(),
        strict=True,
    ):
        yield Row(
            sample=sample,
            domain=corpus.domains[domain],
            epoch=blend.locate(sample)[1],
            pieces=list(_pieces(ids, labels, mask, corpus.eod_id)),
            tokens=np.bincount(labels, minlength=len(corpus.labels)),
        )


def _pieces(
    ids: NDArray[np.int64], labels: NDArray[np.int64], mask: NDArray[np.float32], eod: int
) -> Iterator[Piece]:
    """Cut a sequence behind every end of a document.

    Args:
        ids: Of the tokens. [S]
        labels: Of the document of the token behind each. [S]
        mask: Whether the token behind each counts in the loss. [S]
    """
    ends = np.flatnonzero(ids == eod) + 1
    starts = [0, *(int(end) for end in ends if end < len(ids))]
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        own = ids[start:stop]
        label = int(labels[max(start - 1, 0)])
        known = start > 0 or own[0] != eod
        trained = int(mask[max(start - 1, 0) : stop - 1].sum())
        yield Piece(start, own, bool(own[-1] == eod), trained, label if known else None)
