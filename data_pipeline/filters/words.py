"""The words of a document as arrays: where they are, what they are made of, and their hashes.

A list of strings costs ten times as much as these arrays.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

BLANKS = b" \t\n\r\v\f"
DIGITS = b"0123456789"
LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" + bytes(range(0xC0, 256))
"""ASCII letters, and the first byte of every other character: those count as letters."""

_LETTER, _DIGIT, _OTHER = 1, 2, 4
_CLASSES = bytes(
    0 if b in BLANKS else _LETTER if b in LETTERS else _DIGIT if b in DIGITS else _OTHER
    for b in range(256)
)
_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)
_MAX_HASHED_BYTES = 64


class Words:
    """The words of a document of UTF-8; ASCII blanks separate them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        classes = np.frombuffer(data.translate(_CLASSES), np.uint8)
        padded = np.zeros(len(data) + 2, np.bool_)
        np.not_equal(classes, 0, out=padded[1:-1])
        edges = np.flatnonzero(padded[1:] != padded[:-1])
        self.starts: NDArray[np.int64] = edges[::2]
        self.lengths: NDArray[np.int64] = edges[1::2] - edges[::2]
        """Bytes of each word."""
        self.num_letters = int(np.count_nonzero(classes == _LETTER))
        made_of = (
            np.bitwise_or.reduceat(classes, self.starts)
            if len(self.starts)
            else np.zeros(0, np.uint8)
        )
        self.num_with_letter = int(np.count_nonzero(made_of & _LETTER))
        self.is_alphanumeric: NDArray[np.bool_] = (made_of & (_LETTER | _DIGIT)) > 0
        """Words with a letter or a digit: no rulers, no borders of tables."""
        self.num_alphanumeric = int(np.count_nonzero(self.is_alphanumeric))

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """64 bits of each word; of the bytes after the 64th only their number counts."""
        padded = self._data + bytes(8)
        # eight bytes from every place on
        pieces = np.ndarray(len(self._data) + 1, "<u8", padded, strides=(1,))
        hashes = self.lengths.astype(np.uint64) * _FACTOR
        places, lengths = self.starts, self.lengths
        which: NDArray[np.int64] | slice = slice(None)
        for done in range(0, _MAX_HASHED_BYTES, 8):
            if done:
                which = np.flatnonzero(self.lengths > done)
                if not len(which):
                    break
                places, lengths = self.starts[which] + done, self.lengths[which] - done
            mixed = (hashes[which] ^ (pieces[places] & _MASKS[np.minimum(lengths, 8)])) * _FACTOR
            hashes[which] = mixed ^ (mixed >> _SHIFT)
        return hashes
