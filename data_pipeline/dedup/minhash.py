"""MinHash signatures of documents: shingles by numpy, signatures by rensa, and the S-curve.

Two documents whose sets of shingles have the Jaccard similarity J agree in a band of r hashes with
probability J^r and in one of b bands with 1 - (1 - J^r)^b (Leskovec, Rajaraman and Ullman, Mining
of Massive Datasets, section 3.4).
"""

from __future__ import annotations

import functools
import itertools
import string
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.header import without_licence
from data_pipeline.schema import Document
from loopcoder.config.build import NearDedupConfig

U64 = NDArray[np.uint64]

_SHINGLES = 2
"""Version of what is shingled; 2: what follows the licence header."""
_SEED = 1
"""Chooses the hash functions."""
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Multipliers of splitmix64."""
_LONG_TOKEN = 64
"""Bytes; the few longer tokens are hashed one by one."""
_BLANK, _WORD, _SINGLE, _FIRST = range(4)
"""What a byte is: between tokens, in a word, a token of its own, the first of a wide character."""


def num_bands(config: NearDedupConfig) -> int:
    """Return the bands of a signature; 0 where near copies are not looked for."""
    return config.bands if config.enabled else 0


def num_hashes(config: NearDedupConfig) -> int:
    """Return the length of a signature."""
    return num_bands(config) * config.rows


def shingles(texts: Sequence[bytes], *, code: bool, length: int) -> tuple[U64, NDArray[np.int64]]:
    """Hash every `length` consecutive tokens of every text.

    A token is a run of ASCII letters, digits, `_` and two-byte characters (Latin, Greek, Cyrillic,
    Hebrew, Arabic), or one character of three bytes or more (Chinese, Japanese, Korean, Thai). In
    code every ASCII sign is a token too. In prose signs do not count, nor does ASCII case. Blanks
    never count, nor do U+2000 to U+2FFF (typographic quotes, dashes, symbols). A text of fewer
    than `length` tokens has one shingle of all of them, a text without any has none.

    Args:
        texts: UTF-8 of the texts.
        code: Whether they are code.
        length: Tokens of a shingle.

    Returns:
        The shingles of all texts, repeated as often as they occur, and where each text's begin:
        `[len(texts) + 1]`.
    """
    joined = b"\n".join((*texts, b""))
    if not code:
        joined = joined.lower()
    sizes = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    starts, ends = _tokens(joined, code)
    tokens = _hash_tokens(joined, starts, ends)
    first = np.searchsorted(starts, np.concatenate(([0], np.cumsum(sizes))))
    counts = np.diff(first)
    hashes = _windows(tokens, length)
    whole = np.repeat(first[1:], counts) - np.arange(len(tokens)) >= length
    for i in np.flatnonzero((counts > 0) & (counts < length)):
        at = int(first[i])
        hashes[at] = _windows(np.append(tokens[at : at + counts[i]], np.uint64(counts[i])), 0)[0]
        whole[at] = True
    kept = np.where(counts >= length, counts - length + 1, np.minimum(counts, 1))
    return hashes[whole], np.concatenate(([0], np.cumsum(kept)))


def algorithm(config: NearDedupConfig) -> str:
    """Return the version of what makes signatures; those of two versions cannot be compared."""
    if not num_bands(config):
        return ""
    import rensa

    return f"{rensa.RMinHash.ALGORITHM_VERSION}.{_SHINGLES}"


def signatures(
    texts: Sequence[bytes], *, code: bool, config: NearDedupConfig
) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Return the signatures `[len(texts), num_hashes]` and which texts have any token.

    What follows the licence header is signed: it makes small files of a project look alike.
    """
    length = config.code_shingle if code else config.text_shingle
    bodies = [without_licence(text, code=code) for text in texts]
    hashes, offsets = shingles(bodies, code=code, length=length)
    # only needed to sign, which an image without the data extra may never do
    import rensa

    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        hashes, offsets.astype(np.uint64), num_hashes(config), _SEED
    )
    flat = itertools.chain.from_iterable(matrix.to_rows())
    rows = np.fromiter(flat, np.uint32, len(texts) * num_hashes(config))
    return rows.reshape(len(texts), num_hashes(config)), np.diff(offsets) > 0


def band_hashes(rows: NDArray[np.uint32], config: NearDedupConfig) -> U64:
    """Return one hash per band, `[bands, documents]`."""
    bands = rows.reshape(len(rows), num_bands(config), config.rows).astype(np.uint64)
    return np.ascontiguousarray((_mix(bands) * _powers(config.rows)).sum(axis=2).T)


def sketch(rows: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Return the low byte of every hash, `[documents, num_hashes]`: what `verify` compares.

    Unequal hashes agree in it with probability 1/256.
    """
    return rows.astype(np.uint8)


def is_code(document: Document) -> bool:
    """Tell which of the two kinds of shingles a document has."""
    return document.domain == "code"


@functools.cache
def _classes(code: bool) -> bytes:
    """Return the table from byte to class."""
    table = bytearray([_BLANK] * 128 + [_WORD] * 96 + [_FIRST] * 32)
    if code:
        for sign in string.punctuation.encode():
            table[sign] = _SINGLE
    for letter in (string.ascii_letters + string.digits + "_").encode():
        table[letter] = _WORD
    return bytes(table)


def _tokens(data: bytes, code: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the tokens start and end."""
    padded = np.zeros(len(data) + 2, dtype=np.uint8)
    padded[1:-1] = np.frombuffer(data.translate(_classes(code)), dtype=np.uint8)
    if not data.isascii():
        wide = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == 0xE2) + 1
        for k in range(3):
            padded[wide + k] = _BLANK
    word = (padded & 1).view(np.bool_)
    # the last of a word is followed by no word or by a wide character
    follows = word & (padded != _FIRST)
    single = padded[1:-1] == _SINGLE
    starts = single | (word[1:-1] & ~(follows[1:-1] & word[:-2]))
    ends = single | (word[1:-1] & ~follows[2:])
    return np.flatnonzero(starts), np.flatnonzero(ends) + 1


def _hash_tokens(data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> U64:
    """Hash every token, eight bytes at a time."""
    bytes_ = np.frombuffer(data + bytes(8), dtype=np.uint8)
    # the eight bytes from every position on
    eight: U64 = np.ndarray(len(data) + 1, np.dtype("<u8"), buffer=bytes_, strides=(1,))
    lengths = ends - starts
    hashes = _mix((eight[starts] & _masks()[np.minimum(lengths, 8)]) + lengths.astype(np.uint64))
    rest = np.flatnonzero((lengths > 8) & (lengths <= _LONG_TOKEN))
    at = 8
    while len(rest):
        piece = eight[starts[rest] + at] & _masks()[np.minimum(lengths[rest] - at, 8)]
        hashes[rest] = _mix(hashes[rest] * np.uint64(_MIX[1]) + piece)
        at += 8
        rest = rest[lengths[rest] > at]
    for i in np.flatnonzero(lengths > _LONG_TOKEN):
        hashes[i] = xxhash.xxh3_64_intdigest(data[starts[i] : ends[i]])
    return hashes


@functools.cache
def _masks() -> U64:
    """Return the masks that keep the first 0 to 8 bytes of eight in little-endian order."""
    return np.array([(1 << 8 * n) - 1 for n in range(9)], dtype=np.uint64)


def _mix(x: U64) -> U64:
    """Spread every bit over all (one and a half rounds of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX[0])
    x ^= x >> np.uint64(27)
    x *= np.uint64(_MIX[1])
    return x ^ (x >> np.uint64(31))


@functools.cache
def _powers(count: int) -> U64:
    """Return odd multipliers, one per place."""
    return np.array([pow(_MIX[0], k + 1, 1 << 64) for k in range(count)], dtype=np.uint64)


def _windows(tokens: U64, length: int) -> U64:
    """Hash `length` tokens from every place on (0: all); past the end they count as none."""
    length = length or len(tokens)
    sums = np.zeros(len(tokens), dtype=np.uint64)
    for k, power in enumerate(_powers(min(length, len(tokens)))):
        sums[: len(tokens) - k] += tokens[k:] * power
    return _mix(sums)
