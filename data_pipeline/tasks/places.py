"""Where each document of a chunk comes from, by its row: what tells the list of drops the names of
documents that later stages know by number only.

FOLDER/places.jsonl, places.idx     a line for each document; where each line ends (u64)
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.schema import Document, Place
from data_pipeline.tasks.chunks import dumps, loads
from loopcoder.errors import InputError

PLACES, ENDS = "places.jsonl", "places.idx"
NOWHERE = Place("")
"""Of documents whose places were not written down."""


def written(documents: Iterable[Document], folder: Path) -> Iterator[Document]:
    """Write the places of the documents that pass through; both files are there at the end."""
    ends = []
    size = 0
    with open(folder / PLACES, "wb") as file:
        for document in documents:
            place = document.place
            line = [*place] if place.files else [*place[:4]]
            size += file.write(dumps(line) + b"\n")
            ends.append(size)
            yield document
    np.array(ends, dtype="<u8").tofile(folder / ENDS)


class Places:
    """The places of a chunk."""

    def __init__(self, folder: Path | None) -> None:
        """Open them; None: they were not written down."""
        self._lines: mmap.mmap | bytes | None = None
        if folder is None:
            return
        self._ends: NDArray[np.uint64] = np.fromfile(folder / ENDS, dtype="<u8")
        self._path = folder / PLACES
        with open(self._path, "rb") as file:
            empty = not len(self._ends)
            self._lines = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getitem__(self, row: int) -> Place:
        """Return the place of a document."""
        if self._lines is None:
            return NOWHERE
        start = int(self._ends[row - 1]) if row else 0
        try:
            return Place(*loads(self._lines[start : int(self._ends[row])]))
        except (ValueError, TypeError) as error:
            raise InputError.of(
                f"{self._path} cannot be read: {error}",
                "it was changed after it was written",
                "delete the folder of this build and start the same command again",
            ) from error
