"""The table for a terminal."""

from __future__ import annotations

import random

from loopcoder.diagnose.text import COLUMNS, table
from tests.diagnose.made_up import compared, diagnosis


def test_a_row_for_each_loop_of_each_checkpoint(rng: random.Random) -> None:
    found = compared(rng)
    lines = table(found).splitlines()
    assert max(map(len, lines)) <= COLUMNS
    rows = [line for line in lines if line.startswith("  ")]
    assert len(rows) == 1 + sum(d.loops for d in found)
    assert sum("*" in row.split()[0] for row in rows) == 3
    assert all(line.isprintable() for line in lines)


def test_values_stand_below_their_heads(rng: random.Random) -> None:
    found = diagnosis(
        rng,
        "mine",
        2,
        loss=[3.0, 2.5],
        gate=[None, 0.625],
        offset_cost_raw=[None, 54.25],
        width=0.01,
    )
    head, name, first, second = table([found]).splitlines()[:4]
    assert name == "mine"
    assert first.split()[:2] == ["1", "3.000±0.030"]

    def under(title: str) -> str:
        end = head.index(title) + len(title)
        return second[:end].split()[-1]

    assert under("loss") == "2.500±0.025"
    assert under("gate") == "0.6250±0.0062"
    assert under("offset") == "54.25±0.54"
    assert "gate" in head
    assert len(first) < len(second)
