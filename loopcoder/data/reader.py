"""What reads the training sequences of one domain: each epoch is all of them once, in an order of
its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from loopcoder.data.corpus import Corpus
from loopcoder.data.places import unreadable
from loopcoder.data.sampler import Given


class Row(NamedTuple):
    """One sequence."""

    ids: torch.Tensor
    """Its token ids and the label of the last one. [S+1], int64"""
    labels: torch.Tensor
    """Index in `Corpus.labels` of the document of each label, `ids[1:]`. [S], int64"""
    trained: torch.Tensor | None = None
    """Which labels are trained, [S], bool; None: all of them."""


class Reader(Protocol):
    """The training sequences of one domain."""

    sequences: NDArray[np.int64]
    """Sequences of each shard. [shards]"""
    start: int
    """Sequences that come before the first one of the stage, counted from the first epoch on."""
    left_out: Given
    """Sequences that each change of the length left out, with the length before it."""

    def epochs(self, sequences: int) -> float:
        """Return how often the domain was gone through after so many sequences of the stage."""

    def row(self, epoch: int, index: int) -> Row:
        """Return a sequence of an epoch."""


class MakeReader(Protocol):
    """Opens a domain of a corpus; `seeds`, and `before` where the length has changed, decide the
    order of its epochs."""

    def __call__(
        self,
        corpus: Corpus,
        domain: str,
        seq_length: int,
        seeds: tuple[int, ...],
        before: Given = (),
    ) -> Reader: ...


def sequences_by_shard(corpus: Corpus, domain: str, seq_length: int) -> NDArray[np.int64]:
    """Return how many sequences each training shard of a domain has. [shards]

    A shard ends with the label of its last sequence; less than a sequence is left over.
    """
    tokens = np.array(corpus.shard_tokens(domain, "train"), dtype=np.int64)
    return (tokens - 1) // seq_length


def part_of(
    order: NDArray[np.int64], ends: NDArray[np.int64], counts: NDArray[np.int64], index: int
) -> tuple[int, int]:
    """Return which part holds a number, and the number within it.

    Args:
        order: The parts one after the other.
        ends: How many end with each of them, in this order.
        counts: How many each part has, by its own number.
    """
    place = int(np.searchsorted(ends, index, side="right"))
    part = int(order[place])
    return part, index - int(ends[place]) + int(counts[part])


@contextmanager
def readable(shard: str) -> Iterator[None]:
    """Name the shard that cannot be read in the block; one that is gone stays an error of its own,
    which `corpus.lost` names.

    Raises:
        LoopcoderError: it cannot be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(error.filename or shard, error) from error
