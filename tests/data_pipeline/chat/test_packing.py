"""Packing: nothing is lost, nothing is split, and little is left over."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.chat.packing import Packing, pack


def _hashes(rng: np.random.Generator, count: int) -> NDArray[np.uint64]:
    return rng.integers(0, 2**64, count, dtype=np.uint64)


def _textbook(lengths: NDArray[np.int64], hashes: NDArray[np.uint64], size: int) -> list[int]:
    """Best fit decreasing as it is written down: the tokens of each sequence, sorted."""
    used: list[int] = []
    for item in np.lexsort((hashes, -lengths)):
        fits = [i for i, tokens in enumerate(used) if tokens + lengths[item] <= size]
        if fits:
            used[max(fits, key=lambda i: used[i])] += int(lengths[item])
        else:
            used.append(int(lengths[item]))
    return sorted(used)


def _used(found: Packing, lengths: NDArray[np.int64]) -> list[int]:
    return np.add.reduceat(lengths[found.items], found.starts[:-1]).tolist()


@pytest.mark.parametrize("size", [7, 64, 1000])
def test_it_is_best_fit_decreasing(np_rng: np.random.Generator, size: int) -> None:
    for _ in range(20):
        count = int(np_rng.integers(1, 150))
        lengths = np_rng.integers(1, size + 1, count)
        hashes = _hashes(np_rng, count)
        found = pack(lengths, hashes, size)
        assert sorted(found.items.tolist()) == list(range(count))
        used = _used(found, lengths)
        assert max(used) <= size
        assert sorted(used) == _textbook(lengths, hashes, size)


def test_it_does_not_depend_on_the_order_of_reading(np_rng: np.random.Generator) -> None:
    lengths, hashes = np_rng.integers(1, 65, 500), _hashes(np_rng, 500)
    other = np_rng.permutation(500)
    found, again = pack(lengths, hashes, 64), pack(lengths[other], hashes[other], 64)
    assert np.array_equal(found.items, other[again.items])
    assert np.array_equal(found.starts, again.starts)


def test_sequences_are_not_sorted_by_their_lengths(np_rng: np.random.Generator) -> None:
    lengths = np_rng.integers(1, 65, 4000)
    found = pack(lengths, _hashes(np_rng, 4000), 64)
    longest = np.maximum.reduceat(lengths[found.items], found.starts[:-1])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.15


@pytest.mark.parametrize("typical", [150, 400, 1200])
def test_less_than_2_percent_is_padding_at_8192_tokens(
    np_rng: np.random.Generator, typical: int
) -> None:
    """Lengths of public chat sets are log-normal: most short, some over the length."""
    lengths = np.exp(np_rng.normal(np.log(typical), 1.1, 20_000)).astype(np.int64) + 8
    lengths = lengths[lengths <= 8192]
    found = pack(lengths, _hashes(np_rng, len(lengths)), 8192)
    padding = 1 - lengths.sum() / (found.sequences * 8192)
    print(f"\n{typical} tokens: {padding:.3%} of {found.sequences} sequences is padding")
    assert padding < 0.02


def test_nothing_to_pack() -> None:
    found = pack(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64), 8)
    assert found.sequences == 0
    assert len(found.items) == 0
