"""Lists of items that are worked on together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator


def batches[T](items: Iterable[T], size: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Yield lists of consecutive items; each ends with the item that brings its size to `limit`.

    Args:
        items: Read ahead by one list.
        size: Size of one item, in the unit of `limit`.
        limit: Size that ends a list; a single item may be larger.
    """
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= limit:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
