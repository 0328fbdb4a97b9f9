"""What each document is, for the accounts of a run: its domain, language and source.

`<prefix>.labels` beside `<prefix>.bin`: the number of each document's label in the manifest, uint16
(uint32 where there are more than 65,536 labels: languages times sources are some thousands), then
for every 8192 tokens of the shard how many documents ended before them, uint32, all little-endian.
So the first document of a sequence is found by arithmetic and a count of the end-of-document tokens
among at most 8191, and the file has 2 bytes for each document and 4 for each 8192 tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loopcoder.data.blocks import CheckedFile, OpenRange
from loopcoder.errors import InputError
from loopcoder.storage.files import write_bytes

LABELS = ".labels"
"""Suffix of the labels of a `.bin`'s documents."""
STRIDE = 8192
"""Tokens from one count of documents to the next."""
_COUNT = np.dtype("<u4")


class Label(NamedTuple):
    """What the documents of a kind have in common."""

    domain: str
    language: str | None
    """None: the corpus does not keep it."""
    source: str | None
    """Name of the source that they come from, as in the manifest; None: the corpus does not keep
    it."""


def label_dtype(num_labels: int) -> np.dtype[Any]:
    """Return the type of label numbers on disk."""
    return np.dtype("<u2" if num_labels <= 1 << 16 else "<u4")


def label_bytes(documents: int, tokens: int, num_labels: int) -> int:
    """Return the size of the labels of a shard."""
    return documents * label_dtype(num_labels).itemsize + -(-tokens // STRIDE) * _COUNT.itemsize


def tokens_by_document(ids: NDArray[Any], eod: int) -> NDArray[np.int64]:
    """Return how many tokens of a sequence but the first follow each other in a document; 0 of the
    first document if the sequence begins with its end. [documents]"""
    ends = np.flatnonzero(ids[:-1] == eod)
    borders = np.empty(len(ends) + 2, dtype=np.int64)
    borders[0], borders[1:-1], borders[-1] = 0, ends, len(ids) - 1
    return borders[1:] - borders[:-1]


class LabelWriter:
    """Collects the labels of the documents of a shard, in their order; `finish` writes them.

    Memory: what it writes.
    """

    def __init__(self, num_labels: int) -> None:
        self._dtype = label_dtype(num_labels)
        self._labels: list[NDArray[Any]] = []
        self._ended: list[NDArray[Any]] = []
        self._documents = self._tokens = 0

    def append(self, lengths: NDArray[np.integer], labels: NDArray[np.integer]) -> None:
        """Add documents: the tokens of each, and the numbers of their labels."""
        ends = self._tokens + np.cumsum(lengths, dtype=np.int64)
        stop = int(ends[-1]) if len(ends) else self._tokens
        borders = np.arange(-(-self._tokens // STRIDE), -(-stop // STRIDE)) * STRIDE
        ended = self._documents + np.searchsorted(ends, borders, "right")
        self._ended.append(ended.astype(_COUNT))
        self._labels.append(labels.astype(self._dtype))
        self._documents += len(ends)
        self._tokens = stop

    def content(self) -> bytes:
        """Return what the file has to hold."""
        return b"".join(part.tobytes() for part in (*self._labels, *self._ended))

    def finish(self, path: Path) -> None:
        """Write the whole file."""
        write_bytes(path, self.content())


class LabelFile:
    """Reads the labels of a shard's documents, some bytes for each sequence.

    The file is compared with its digest as a whole, when something of it is first wanted: a shard
    of 32 GB has 20 MB of them.
    """

    def __init__(
        self,
        path: Path,
        documents: int,
        tokens: int,
        num_labels: int,
        digest: str | None,
        fix: str,
        opens: OpenRange = CheckedFile,
    ):
        """
        Args:
            documents: Of the shard.
            tokens: Of the shard.
            num_labels: Of the corpus.
            digest: xxh3-128 of the file, in hex; None: it is not compared.
            fix: What mends a damaged file.
            opens: Opens the file.

        Raises:
            OSError: the file cannot be opened.
        """
        self._path, self._fix = path, fix
        self._documents, self._num_labels = documents, num_labels
        self._dtype = label_dtype(num_labels)
        size = label_bytes(documents, tokens, num_labels)
        whole = None
        if digest is not None:
            whole = np.frombuffer(bytes.fromhex(digest), dtype=np.uint8).reshape(1, -1)
        self._file = opens(path, size, whole, fix, block_bytes=size)

    def of_sequence(
        self, start: int, before: NDArray[Any], ids: NDArray[Any], eod: int
    ) -> NDArray[np.int64]:
        """Return the label of each token of a sequence but the first. [S]

        Args:
            start: Number of the sequence's first token in the shard.
            before: Tokens in front of it, from the last multiple of STRIDE on.
            ids: Of the sequence and its last label. [S+1]
            eod: Token that ends every document.

        Raises:
            InputError: the file is damaged.
            OSError: it cannot be read.
        """
        at = self._documents * self._dtype.itemsize + start // STRIDE * _COUNT.itemsize
        ended = int.from_bytes(self._file.read(at, _COUNT.itemsize), "little")
        first = ended + int(np.count_nonzero(before == eod))
        counts = tokens_by_document(ids, eod)
        return np.repeat(self.of_documents(first, first + len(counts)), counts)

    def of_documents(self, first: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Return the labels of documents [first, stop), or of all. [documents]

        Raises:
            InputError: the file is damaged.
            OSError: it cannot be read.
        """
        stop = self._documents if stop is None else stop
        if stop > self._documents:
            raise self._damaged(f"document {stop - 1:,}, the shard has {self._documents:,}")
        size = self._dtype.itemsize
        content = self._file.read(first * size, (stop - first) * size)
        labels = np.frombuffer(content, dtype=self._dtype).astype(np.int64)
        if len(labels) and (highest := int(labels.max())) >= self._num_labels:
            raise self._damaged(f"label {highest:,}, the corpus has {self._num_labels:,}")
        return labels

    def _damaged(self, what: str) -> InputError:
        return InputError.of(
            f"{self._path} is damaged: it names {what}",
            "it was changed after it was built, or its shard was",
            self._fix,
        )
