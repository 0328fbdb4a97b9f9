"""The order of a domain whose sequences change their length: nothing twice, nothing lost but what
is said."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from loopcoder.data import order as module
from loopcoder.data.order import Order, continued
from loopcoder.data.sampler import Given

SEEDS = (1, 0, 0)
Stretch = tuple[int, int, int]
"""(epoch, shard, number there)"""


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


@pytest.fixture(autouse=True)
def small_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 tokens, so that small shards have many."""
    monkeypatch.setattr(module, "BLOCK_BYTES", 128)
    monkeypatch.setattr(module, "_LEAST_TOKENS", 64)


def walk(tokens: list[int], given: Given) -> Iterator[tuple[int, int, int, int]]:
    """Yield epoch, shard, first token and length of every sequence that a domain gives."""
    for stage, (length, count) in enumerate(given):
        order, start, _ = continued(tokens, 2, length, SEEDS, given[:stage])
        for number in range(start, start + count):
            epoch, index = divmod(number, order.size)
            yield (epoch, *order.place(epoch, index), length)


def entered(tokens: list[int], given: Given) -> list[Stretch]:
    """The stretches in the order in which they are entered."""
    cut = Order(tokens, 2, given[0][0], SEEDS, given[0][0])
    borders = [cut._borders(shard) for shard in range(len(tokens))]
    found: list[Stretch] = []
    for epoch, shard, token, length in walk(tokens, given):
        stretch = int(np.searchsorted(borders[shard], token, side="right")) - 1
        assert token + length <= borders[shard][stretch + 1], "it ends in its stretch"
        if not found or found[-1] != (epoch, shard, stretch):
            found.append((epoch, shard, stretch))
    return found


def drawn(rng: random.Random) -> tuple[list[int], Given]:
    """Shards, and stages of several lengths that last some epochs."""
    tokens = [rng.randint(200, 900) for _ in range(rng.randint(1, 4))]
    lengths = [rng.choice((5, 7, 8, 16, 30)) for _ in range(6)]
    given = [(lengths[0], rng.randint(1, 120))]
    for length in lengths[1:]:
        if length != given[-1][0]:
            given.append((length, rng.choice((1, 2, 9, sum(tokens) // length, 60))))
    return tokens, tuple(given)


def test_no_token_comes_twice_in_an_epoch(rng: random.Random) -> None:
    for _ in range(5):
        tokens, given = drawn(rng)
        seen: Counter[tuple[int, int, int]] = Counter()
        for epoch, shard, token, length in walk(tokens, given):
            assert token + length < tokens[shard], "its last label is there"
            seen.update((epoch, shard, t) for t in range(token, token + length))
        assert set(seen.values()) == {1}


def test_every_stretch_comes_in_its_turn(rng: random.Random) -> None:
    """As in a run of the first length alone, but for those that have no sequence of the length."""
    for _ in range(5):
        tokens, given = drawn(rng)
        found = entered(tokens, given)
        epochs = found[-1][0] + 1
        first = given[0][0]
        size = Order(tokens, 2, first, SEEDS, first).size
        turns = iter(entered(tokens, ((first, epochs * size),)))
        longest = max(length for length, _ in given)
        borders = [Order(tokens, 2, first, SEEDS, first)._borders(s) for s in range(len(tokens))]
        for stretch in found:
            for turn in turns:
                if turn == stretch:
                    break
                assert np.diff(borders[turn[1]])[turn[2]] < longest, "it was passed over"
            else:
                raise AssertionError(f"{stretch} came out of its turn")


def test_what_a_change_leaves_out_is_counted(rng: random.Random) -> None:
    for _ in range(20):
        tokens, given = drawn(rng)
        for stage in range(1, len(given)):
            length, before = given[stage][0], given[:stage]
            *_, left_out = continued(tokens, 2, length, SEEDS, before)
            assert [each[0] for each in left_out] == [each[0] for each in before]
            order, start, _ = continued(tokens, 2, before[-1][0], SEEDS, before[:-1])
            # the sequences that would have followed in the same stretch
            end = start + before[-1][1]
            under_way = [order._within(*divmod(i, order.size)) for i in range(end - 1, end + 65)]
            rest = 0
            while under_way[rest + 1][:2] == under_way[0][:2] and under_way[rest + 1][2] > 0:
                rest += 1
            assert left_out[-1] == (before[-1][0], rest)


def test_an_epoch_at_another_length_is_whole(rng: random.Random) -> None:
    """Less than a sequence per stretch is in none."""
    for _ in range(5):
        tokens, given = drawn(rng)
        length = given[-1][0]
        order, *_ = continued(tokens, 2, length, SEEDS, given[:-1])
        places = {order.place(3, i) for i in range(order.size)}
        assert len(places) == order.size == order.sequences.sum()
        cut = [tokens[s] - 1 - (tokens[s] - 1) % given[0][0] for s in range(len(tokens))]
        stretches = sum(len(order._borders(shard)) - 1 for shard in range(len(tokens)))
        lost = sum(cut) - order.size * length
        assert 0 <= lost <= stretches * (length - 1)


def test_the_same_length_goes_on_by_its_number(rng: random.Random) -> None:
    tokens = [rng.randint(200, 900) for _ in range(3)]
    count = rng.randint(1, 300)
    alone = list(walk(tokens, ((8, count + 50),)))
    order, start, left_out = continued(tokens, 2, 8, SEEDS, ((8, count),))
    assert (start, left_out) == (count, ())
    later = [(e, *order.place(e, i)) for e, i in (divmod(start + n, order.size) for n in range(50))]
    assert later == [place[:3] for place in alone[count:]]
