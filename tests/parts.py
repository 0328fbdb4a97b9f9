"""A part of a long list of cases: LOOPCODER_TEST_PART=2/3 takes the second third of each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence


def part_of[T](cases: Mapping[str, T]) -> dict[str, T]:
    """Return every n-th case from the k-th on for LOOPCODER_TEST_PART=k/n; without it, all."""
    k, n = _part()
    return {name: case for i, (name, case) in enumerate(cases.items()) if i % n == k - 1}


def one_of[T](cases: Sequence[T]) -> Sequence[T]:
    """Return the k-th of a few slow cases for LOOPCODER_TEST_PART=k/n, from the first again after
    the last; without it, all."""
    k, n = _part()
    return cases if n == 1 else [cases[(k - 1) % len(cases)]]


def third_of[T](cases: Sequence[T]) -> Sequence[T]:
    """Return every third case for LOOPCODER_TEST_PART=k/n, from the same one on for six k in turn,
    so that each case meets all that `one_of` returns of up to six; without it, all."""
    k, n = _part()
    return cases if n == 1 else cases[(k - 1) // 6 % 3 :: 3]


def _part() -> tuple[int, int]:
    number, _, parts = os.environ.get("LOOPCODER_TEST_PART", "1/1").partition("/")
    k, n = int(number), int(parts)
    if not 1 <= k <= n:
        raise ValueError(f"LOOPCODER_TEST_PART={number}/{parts}: a part from 1 to {parts}")
    return k, n
