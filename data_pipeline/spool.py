"""Documents between reading and encoding: one file a domain, 28 bytes a document in memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.schema import Document


class Spool:
    """The documents of one domain, appended in any order, read in the order of their ids' hashes.

    That order mixes sources, folders and languages, and depends on nothing else.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w+b")  # noqa: SIM115 - closed by close
        self._order = array("Q")
        self._content = array("Q")
        self._offsets = array("Q")
        self._language = array("I")
        self._end = 0
        self.languages: list[str] = []
        """Names, in the order in which they turned up."""
        self._language_index: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._order)

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return self._end

    def add(self, document: Document, data: bytes, normalised: bytes) -> None:
        """Append a document; `data` is its text in UTF-8, `normalised` what decides its split."""
        if document.language not in self._language_index:
            self._language_index[document.language] = len(self.languages)
            self.languages.append(document.language)
        self._file.write(data)
        self._order.append(xxhash.xxh3_64_intdigest(document.id.encode()))
        self._content.append(xxhash.xxh3_64_intdigest(normalised))
        self._offsets.append(self._end)
        self._language.append(self._language_index[document.language])
        self._end += len(data)

    def split(self, val_fraction: float) -> dict[str, NDArray[np.int64]]:
        """Return the documents of `train` and `val`, as indices in reading order.

        Held out is what has hash(content) / 2^64 < val_fraction, whatever its source and
        neighbours; if that is nothing, the document with the smallest hash.
        """
        content = np.frombuffer(self._content, dtype=np.uint64)
        threshold = int(val_fraction * 2**64)
        if threshold >= 2**64:
            held_out = np.ones(len(self), dtype=bool)
        else:
            held_out = content < np.uint64(threshold)
        if not held_out.any() and len(self):
            held_out[int(content.argmin())] = True
        order = np.argsort(np.frombuffer(self._order, dtype=np.uint64), kind="stable")
        return {"train": order[~held_out[order]], "val": order[held_out[order]]}

    def batches(
        self, documents: Sequence[int] | NDArray[np.int64], max_bytes: int
    ) -> Iterator[tuple[list[str], NDArray[np.int64], NDArray[np.int64]]]:
        """Yield (texts, UTF-8 bytes of each, language index of each), one document or more."""
        texts: list[str] = []
        sizes: list[int] = []
        languages: list[int] = []
        for i in documents:
            stop = self._offsets[i + 1] if i + 1 < len(self) else self._end
            size = stop - self._offsets[i]
            if texts and sum(sizes) + size > max_bytes:
                yield texts, np.array(sizes), np.array(languages)
                texts, sizes, languages = [], [], []
            self._file.seek(self._offsets[i])
            texts.append(self._file.read(size).decode())
            sizes.append(size)
            languages.append(self._language[i])
        if texts:
            yield texts, np.array(sizes), np.array(languages)

    def close(self) -> None:
        """Close the file; it goes with the temporary folder."""
        self._file.close()
