"""Repetition inside a prose document (Gopher, table A1), by sorted hashes of n-grams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.filters.words import Words
from loopcoder.config.filters import FilterConfig

_Hashes = NDArray[np.uint64]
_Ints = NDArray[np.int64]
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def line_fault(text: str, lines: Sequence[str], rules: FilterConfig) -> str:
    """Return the rule on repeated lines or paragraphs that a document breaks, or ''.

    Args:
        text: The document, with LF line ends.
        lines: Its lines that are not blank, stripped.
    """
    # a paragraph that is repeated consists of repeated lines: most documents end here
    if len(set(lines)) == len(lines):
        return ""
    return _part_fault(
        [p.strip() for p in text.split("\n\n")],
        "duplicate_paragraph",
        rules.max_duplicate_paragraphs,
        rules.max_duplicate_paragraph_chars,
        rules.min_repeat_chars,
    ) or _part_fault(
        lines,
        "duplicate_line",
        rules.max_duplicate_lines,
        rules.max_duplicate_line_chars,
        rules.min_repeat_chars,
    )


def _part_fault(
    parts: Sequence[str],
    name: str,
    max_parts: float | None,
    max_chars: float | None,
    min_repeat_chars: int,
) -> str:
    if max_parts is None and max_chars is None:
        return ""
    long = [part for part in parts if len(part) >= min_repeat_chars]
    if not _broken(long, parts, max_parts, max_chars):
        return ""
    # rulers, borders of tables and their empty rows repeat nothing
    said = [part for part in long if any(map(str.isalnum, part))]
    broken = _broken(said, parts, max_parts, max_chars)
    return name + broken if broken else ""


def _broken(
    long: Sequence[str], parts: Sequence[str], max_parts: float | None, max_chars: float | None
) -> str:
    """Return which limit on what is repeated among the long parts is broken: the end of its name,
    or ''."""
    unique = set(long)
    repeated = len(long) - len(unique)
    if not repeated:
        return ""
    if max_parts is not None and repeated > max_parts * len(parts):
        return "s"
    if max_chars is not None:
        repeated_chars = sum(map(len, long)) - sum(map(len, unique))
        if repeated_chars > max_chars * sum(map(len, parts)):
            return "_chars"
    return ""


def ngram_fault(words: Words, rules: FilterConfig) -> str:
    """Return the rule on frequent or repeated n-grams of words that a document breaks, or ''.

    Shares are of the bytes of words; blanks, rulers and borders of tables are left out. N-grams are
    compared by 64-bit hashes.
    """
    if not rules.max_top_ngram and not rules.max_duplicate_ngrams:
        return ""
    counted = words.is_alphanumeric
    grams = _Grams(words.hashes[counted], words.lengths[counted])
    return _top_fault(grams, rules) or _duplicate_fault(grams, rules)


class _Grams:
    """The hashes of all n-grams of a document, n growing."""

    def __init__(self, words: _Hashes, lengths: _Ints) -> None:
        self.lengths = lengths
        self.num_chars = int(lengths.sum())
        self._words = words
        self._ends = np.concatenate(([0], np.cumsum(lengths)))
        self.size = 1
        self.hashes = words

    def grow(self, size: int) -> None:
        """Go on to n-grams of `size` words; there may be none."""
        while self.size < size:
            shorter = self.hashes[:-1] * _FACTOR
            self.hashes = shorter + self._words[self.size :]
            self.size += 1

    def chars(self) -> _Ints:
        """Return the characters of each n-gram."""
        return np.asarray(self._ends[self.size :] - self._ends[: -self.size])


def _top_fault(grams: _Grams, rules: FilterConfig) -> str:
    for size, limit in sorted((rules.max_top_ngram or {}).items()):
        if len(grams.lengths) <= size:
            break
        grams.grow(size)
        ordered = np.sort(grams.hashes)
        last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
        counts = np.diff(last, prepend=-1)
        count = int(counts.max())
        if count == 1:  # no longer one is repeated either
            break
        chars = grams.chars()
        if count * int(chars.max()) <= limit * grams.num_chars:
            continue
        most_frequent = ordered[last[counts == count]]
        longest = int(chars[_is_in(grams.hashes, most_frequent)].max())
        if count * longest > limit * grams.num_chars:
            return f"frequent_{size}_gram"
    return ""


def _duplicate_fault(grams: _Grams, rules: FilterConfig) -> str:
    limits = sorted((rules.max_duplicate_ngrams or {}).items())
    for i, (size, limit) in enumerate(limits):
        if len(grams.lengths) <= size:
            break
        grams.grow(size)
        # what repeated n-grams cover, the repeated n-grams of each smaller n cover as well
        enough = min(limit for _, limit in limits[i:]) * grams.num_chars
        repeated = _repeated_chars(grams, enough)
        if repeated > limit * grams.num_chars:
            return f"duplicate_{size}_grams"
        if repeated <= enough:
            break
    return ""


def _repeated_chars(grams: _Grams, enough: float = 0.0) -> int:
    """Return the characters of words within n-grams that occurred before, each counted once.

    Where a bound on them is not above `enough`, the bound is returned: it is faster.
    """
    ordered = np.sort(grams.hashes)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return 0
    if enough:
        longest = np.partition(grams.chars(), len(ordered) - len(repeated))[-len(repeated) :]
        bound = int(longest.sum())
        if bound <= enough:
            return bound
    order = np.argsort(grams.hashes)
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    is_repeated = np.ones(len(order), np.bool_)
    is_repeated[np.minimum.reduceat(order, starts)] = False
    places = np.flatnonzero(is_repeated)
    steps = np.zeros(len(grams.lengths) + 1, np.int64)
    steps[places] += 1
    steps[places + grams.size] -= 1
    return int(grams.lengths[np.cumsum(steps[:-1]) > 0].sum())


def _is_in(values: _Hashes, ordered: _Hashes) -> NDArray[np.bool_]:
    """Tell which values occur in `ordered`, which is sorted and not empty."""
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[at] == values)
