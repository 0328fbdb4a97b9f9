"""Batches by size hold every item once, in order, and read no further than they must."""

from __future__ import annotations

import random
from collections.abc import Iterator

from data_pipeline.batches import batches


def test_batches(rng: random.Random) -> None:
    for _ in range(100):
        items = [rng.randrange(20) for _ in range(rng.randrange(60))]
        limit = rng.randrange(1, 50)
        found = list(batches(items, lambda item: item, limit))
        assert [item for batch in found for item in batch] == items
        assert all(found)
        # each ends with the first item that reaches the limit; the last may not reach it
        assert all(sum(batch[:-1]) < limit for batch in found)
        assert all(sum(batch) >= limit for batch in found[:-1])
    assert list(batches([], len, 1)) == []


def test_batches_are_read_one_by_one() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10):
            read.append(item)
            yield item

    found = batches(items(), lambda _: 1, 3)
    assert next(found) == [0, 1, 2]
    assert read == [0, 1, 2]
