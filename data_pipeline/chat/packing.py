"""Whole conversations into sequences of one length, with little left over.

Best fit decreasing: the longest first, each into the sequence that it leaves the least room in, a
new one where it fits into none. It takes at most 11/9 of the fewest sequences possible and some
(Johnson et al., Worst-case performance bounds for simple one-dimensional packing algorithms, 1974);
of many conversations, most of them short, hardly more than there are tokens for.

Conversations of one length are placed together, so that the time goes with the number of different
lengths and of rooms, and not with that of conversations times sequences: 5 million take 5 s.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class Packing(NamedTuple):
    """Which conversations make up each sequence."""

    items: Ids
    """Their numbers, sequence after sequence. [conversations]"""
    starts: Ids
    """Where each sequence begins in `items`, and where the last one ends. [sequences + 1]"""

    @property
    def sequences(self) -> int:
        return len(self.starts) - 1


def pack(lengths: NDArray[np.integer], hashes: NDArray[np.uint64], size: int) -> Packing:
    """Pack conversations into sequences; memory: 60 bytes for each conversation.

    Args:
        lengths: Tokens of each, `size` at most. [conversations]
        hashes: Of their contents, by which sequences follow each other, and conversations in each
            of them, whatever they are and in whichever order they were read. [conversations]
        size: Tokens of a sequence.
    """
    order = np.lexsort((hashes, -lengths.astype(np.int64)))
    sequence_of = _best_fit(lengths[order], size)
    # a sequence is called by the first conversation that was put there, the longest one
    first = np.full(int(sequence_of.max(initial=-1)) + 1, -1, dtype=np.int64)
    first[sequence_of[::-1]] = order[::-1]
    place = np.empty_like(first)
    place[np.argsort(hashes[first], kind="stable")] = np.arange(len(first))
    sequence_of = place[sequence_of]
    items = order[np.lexsort((hashes[order], sequence_of))]
    counts = np.bincount(sequence_of, minlength=len(first))
    return Packing(items, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def _best_fit(lengths: NDArray[np.integer], size: int) -> Ids:
    """Return the sequence of each conversation. [conversations]

    Args:
        lengths: Of the conversations, the longest first.
        size: Tokens of a sequence.
    """
    found = np.empty(len(lengths), dtype=np.int64)
    rooms = _Rooms()
    starts = np.flatnonzero(np.diff(lengths, prepend=-1)).tolist()
    for start, end in pairwise([*starts, len(lengths)]):
        length, at = int(lengths[start]), start
        while at < end:
            room, sequences = rooms.tightest(length) or (
                size,
                rooms.new(-(-(end - at) // (size // length))),
            )
            # the tightest sequence stays the tightest one until no more fits in
            each = room // length
            full, rest = divmod(end - at, each)
            filled = sequences[:full]
            found[at : at + each * len(filled)] = np.repeat(filled, each)
            at += each * len(filled)
            rooms.add(room - each * length, filled)
            if len(sequences) > full:
                last = sequences[full : full + (rest > 0)]
                found[at:end] = np.repeat(last, rest)
                rooms.add(room - rest * length, last)
                rooms.add(room, sequences[full + len(last) :])
                at = end
    return found


class _Rooms:
    """Sequences by the tokens that are left in each."""

    def __init__(self) -> None:
        self._by_room: dict[int, list[Ids]] = {}
        self._bits = 0
        """Bit r is set if a sequence has room for r tokens."""
        self._count = 0

    def new(self, count: int) -> Ids:
        """Return new sequences."""
        self._count += count
        return np.arange(self._count - count, self._count)

    def add(self, room: int, sequences: Ids) -> None:
        """Keep sequences that have so much room."""
        if len(sequences) and room:
            self._by_room.setdefault(room, []).append(sequences)
            self._bits |= 1 << room

    def tightest(self, length: int) -> tuple[int, Ids] | None:
        """Take out some of the sequences with the least room that is enough; None: none has."""
        enough = self._bits >> length
        if not enough:
            return None
        room = length + (enough & -enough).bit_length() - 1
        there = self._by_room[room]
        sequences = there.pop()
        if not there:
            del self._by_room[room]
            self._bits ^= 1 << room
        return room, sequences
