"""Values with intervals, their differences, and names, as reports read them."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from loopcoder.diagnose.reading import Point, by_layer, by_loop, labels, not_finite, number
from tests.diagnose.made_up import HARD_NAME, diagnosis


def test_a_difference_has_the_interval_of_both(rng: random.Random) -> None:
    a, b = rng.uniform(-5, 5), rng.uniform(-5, 5)
    below, above, other_below, other_above = (rng.uniform(0.1, 1) for _ in range(4))
    found = Point(a, a - below, a + above).minus(Point(b, b - other_below, b + other_above))
    assert found.value == a - b
    assert found.low == pytest.approx(a - b - math.hypot(below, other_above))
    assert found.high == pytest.approx(a - b + math.hypot(above, other_below))
    assert found.magnitude.value == abs(a - b)
    assert found.magnitude.half == pytest.approx(found.half)


def test_without_an_interval_nothing_is_told_apart() -> None:
    assert not Point(3.0).is_told_from_zero
    assert not Point(3.0).minus(Point(1.0, 0.9, 1.1)).is_told_from_zero
    assert Point(3.0, 2.0, 4.0).is_told_from_zero
    assert Point(-3.0, -4.0, -2.0).is_told_from_zero
    assert not Point(3.0, -0.1, 4.0).is_told_from_zero


@pytest.mark.parametrize(
    ("point", "shown"),
    [
        (Point(2.34567, 2.3333, 2.3580), "2.346 ± 0.012"),
        (Point(846.2, 834.0, 858.4), "846 ± 12"),
        (Point(12345.6, 12000, 12600), "12,346 ± 346"),
        (Point(-0.72, -0.7234, -0.7166), "-0.7200 ± 0.0034"),
        (Point(9.0, 9.0, 9.0), "9"),
        (Point(0.123456), "0.1235"),
        (Point(1.5e-9, 1.4e-9, 1.6e-9), "1.5e-09 ± 1e-10"),
    ],
)
def test_how_a_value_is_shown(point: Point, shown: str) -> None:
    assert str(point) == shown


def test_numbers() -> None:
    assert [number(x) for x in (0.0, 7, 2.0, 1234567.0, 0.00012346, float("nan"))] == [
        *("0", "7", "2", "1,234,567", "0.0001235", "nan")
    ]


def test_over_layers_and_by_layer_are_kept_apart(rng: random.Random) -> None:
    found = diagnosis(rng, trained=3, layers=4)
    series = [s for s in found.series if (s.measure, s.group) == ("gate", "all")]
    whole, each = sorted(series, key=lambda s: s.layers is not None)
    assert by_loop(found, "gate") == {
        loop: Point(whole.values[loop - 1], whole.low[loop - 1], whole.high[loop - 1])
        for loop in (2, 3)
    }
    assert {loop: list(points) for loop, points in by_layer(found, "gate").items()} == {
        2: [0, 1, 2, 3],
        3: [0, 1, 2, 3],
    }
    assert by_layer(found, "gate")[3][2].value == each.values[2][2]
    assert by_layer(found, "loss") == {} == by_loop(found, "nothing")


def test_what_is_not_finite_is_named(rng: random.Random) -> None:
    found = diagnosis(rng, layers=2)
    assert not_finite(found) == []
    series = [
        replace(s, values=[math.nan, *s.values[1:]])
        if (s.measure, s.group) == ("loss", "domain/code")
        else s
        for s in found.series
    ]
    found = replace(found, series=series)
    assert not_finite(found) == ["loss domain/code"]
    assert list(by_loop(found, "loss", group="domain/code")) == [2]


def test_labels_are_short_and_no_two_the_same(rng: random.Random) -> None:
    names = ["a", HARD_NAME, HARD_NAME, "a", "", "b\nc", f"{'x' * 50}1", f"{'x' * 50}1"]
    found = labels([diagnosis(rng, name, 1, layers=1) for name in names], 30)
    assert len(set(found)) == len(names)
    assert max(map(len, found)) <= 30
    assert all(label.isprintable() and label for label in found)
    assert found[5] == "b c"
    assert labels([diagnosis(rng, "a", 1, layers=1)]) == ["a"]
