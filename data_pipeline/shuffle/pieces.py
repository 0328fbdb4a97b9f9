"""The names of documents, and of the pieces of long ones, that the plan and the shuffle know by
number."""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from data_pipeline.repositories.chunks import kept_rows, places_of
from data_pipeline.schema import Place
from data_pipeline.tasks.work import Work

_WHOLE = (1 << 16) - 1
"""Place in its document of a piece that is the whole document; `piece` is a u16 in `Counts`."""


def number_in_chunk(row: int, piece: int | None) -> int:
    """Return what names a document of a chunk, or a piece of one, in the buckets."""
    return (row << 16) + (_WHOLE if piece is None else piece)


class ByNumber:
    """Places by chunk and `number_in_chunk`."""

    def __init__(self, work: Work) -> None:
        self._of_chunk = lru_cache(maxsize=64)(partial(places_of, work))

    def __call__(self, chunk: int, number: int) -> Place:
        row, piece = number >> 16, number & _WHOLE
        place = self._of_chunk(chunk)[row]
        return place if piece == _WHOLE else place._replace(piece=piece, num_bytes=None)


class ByEntry:
    """Places of the pieces that were counted of a chunk, by their number in `Counts`."""

    def __init__(self, work: Work, chunk: int, entries: NDArray[np.void]) -> None:
        self._pieces, self._bytes = entries["piece"], entries["bytes"]
        starts = np.flatnonzero(self._pieces == 0)
        sizes = np.diff([*starts, len(entries)])
        self._rows = np.repeat(kept_rows(work, chunk), sizes)
        self._is_split = np.repeat(sizes > 1, sizes)
        self._places = places_of(work, chunk)

    def __call__(self, entry: int) -> Place:
        place = self._places[int(self._rows[entry])]
        if not self._is_split[entry]:
            return place
        return place._replace(piece=int(self._pieces[entry]), num_bytes=int(self._bytes[entry]))
