"""Hashes of words and of word n-grams, with numpy.

Words are runs of letters and digits in lower case; everything else separates, `_` too. A CJK
character begins a word. Rolling hashes by prefix sums modulo 2^64: Karp and Rabin, 1987.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

BLOCK_WORDS = 1 << 14
HASH_BITS = 48
NONE: Hashes = np.zeros(0, dtype=np.uint64)

_BLOCK_BYTES = 1 << 16
BORDER = "\x1e"
"""Stands between documents; the only control character that counts as a letter."""
JOIN = f"\n{BORDER}\n".encode()
# Latin-1 signs, general punctuation, CJK and full-width punctuation
_PUNCTUATION = re.compile(
    "[\x80-\xa9\xab-\xb4\xb6-\xb9\xbb-\xbf\u2000-\u206f\u3000-\u303f\uff00-\uff0f]"
)


def _powers(base: int, count: int) -> Hashes:
    powers = np.full(count, base, dtype=np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def _tables() -> tuple[bytes, Hashes]:
    """Return the class of every byte (1: of a word) and its value; A and a have the same."""
    letters = [c for c in range(256) if c >= 0x80 or chr(c).isalnum() or chr(c) == BORDER]
    values = np.zeros(256, dtype=np.uint64)
    for c in letters:
        folded = ord(chr(c).lower()) if c < 0x80 else c
        values[c] = (folded + 1) * 0xD6E8FEB86659FD93 % 2**64 | 1
    return bytes(c in letters for c in range(256)), values


_BYTE_BASE, _WORD_BASE, _MIX = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, np.uint64(0xBF58476D1CE4E5B9)
_BYTE_POWERS = _powers(_BYTE_BASE, _BLOCK_BYTES + 1)
_BYTE_INVERSES = _powers(pow(_BYTE_BASE, -1, 2**64), _BLOCK_BYTES + 1)
_WORD_POWERS = _powers(_WORD_BASE, 2 * BLOCK_WORDS)
_WORD_INVERSES = _powers(pow(_WORD_BASE, -1, 2**64), 2 * BLOCK_WORDS)
_IS_WORD, _VALUES = _tables()


def normalise(text: str) -> bytes:
    """Return UTF-8 in which only letters and digits have bytes that belong to words.

    ASCII keeps its case and signs, which `word_hashes` folds; other letters are put in lower case.
    """
    text = text.replace(BORDER, " ")
    if not text.isascii():
        text = _PUNCTUATION.sub(" ", text.lower())
    return text.encode(errors="replace")


def word_hashes(data: bytes) -> Hashes:
    """Return a 64-bit hash of every word of normalised UTF-8.

    A CJK character begins a word. Words of more than 64 kB may be cut.
    """
    data = b"\n" + data
    classes = np.frombuffer(data.translate(_IS_WORD), dtype=bool)
    raw = np.frombuffer(data, dtype=np.uint8)
    has_cjk = not data.isascii()
    found = []
    start = 0
    while start < len(data):
        stop = start + _BLOCK_BYTES
        if stop < len(data):
            cut = max(data.rfind(b"\n", start + 1, stop), data.rfind(b" ", start + 1, stop))
            stop = cut if cut > 0 else stop
        block, inside = raw[start:stop], classes[start:stop]
        sums = np.take(_VALUES, block)
        sums *= _BYTE_POWERS[: len(block)]
        np.cumsum(sums, out=sums)
        begins = inside[1:] > inside[:-1]
        if has_cjk:
            begins |= (block[1:] >= 0xE3) & (block[1:] <= 0xED)
        before = np.flatnonzero(begins)
        ends = np.append(sums[before[1:]], sums[-1]) if len(before) else sums[:0]
        # what stands between two words adds nothing to the sums
        words = (ends - sums[before]) * _BYTE_INVERSES[before]
        words ^= words >> np.uint64(32)
        words *= _MIX
        words ^= words >> np.uint64(29)
        found.append(words)
        start = stop
    return np.concatenate(found)


def ngram_hashes(words: Hashes, n: int) -> Iterator[Hashes]:
    """Yield the 48-bit hashes of all runs of n words, in blocks, in the order of the text."""
    for start in range(0, len(words) - n + 1, BLOCK_WORDS):
        block = words[start : start + BLOCK_WORDS + n - 1]
        sums = np.zeros(len(block) + 1, dtype=np.uint64)
        np.cumsum(block * _WORD_POWERS[: len(block)], out=sums[1:])
        grams = (sums[n:] - sums[:-n]) * _WORD_INVERSES[: len(block) - n + 1]
        # the upper bits are the good ones of a product
        yield grams >> np.uint64(64 - HASH_BITS)


BORDER_HASH = word_hashes(BORDER.encode())[0]
