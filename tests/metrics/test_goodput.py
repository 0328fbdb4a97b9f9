"""Where the wall time of a run went, by hand-computed cases and by random ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopcoder.metrics import goodput
from loopcoder.metrics.goodput import Account, Mark, TimeRecord, account_of, read_marks
from tests.conftest import fresh_seed


def mark(time: float, session: int, from_step: int, step: int, **seconds: float) -> Mark:
    return Mark(time, session, from_step, step, seconds)


def test_a_run_that_was_killed_resumed_and_rewound() -> None:
    """Three processes: 100 to 220, killed; 250 to 330, rewound; 335 to 395."""
    marks = [
        mark(110, 0, 0, 0, start=10),
        mark(140, 0, 0, 3, start=10, data=1, steps=29),
        mark(160, 0, 0, 5, start=10, data=2, steps=48),  # before the save of step 5
        mark(220, 0, 0, 9, start=10, data=3, steps=100, evaluation=4, saving=3),
        # continues from 5: 52 of 100 s are lost; 250 - 220 s are down
        mark(256, 1, 5, 5, start=6),
        mark(300, 1, 5, 10, start=6, data=1, steps=43),  # before the save of step 10
        mark(315, 1, 5, 10, start=6, data=1, steps=45, saving=13),  # with a part of step 11
        mark(330, 1, 5, 13, start=6, data=2, steps=59, saving=13),
        # goes back to 10: 59 - 43 s are lost, 5 s are down
        mark(340, 2, 10, 10, start=5),
        mark(395, 2, 10, 20, start=5, steps=50, saving=5),
    ]
    account = account_of(marks)
    assert account.seconds == {
        "steps": 48 + 43 + 50,
        "lost": 52 + 16,
        "start": 21,
        "data": 5,
        "evaluation": 4,
        "saving": 21,
        "down": 35,
    }
    assert account.total == 395 - 100
    assert account.goodput == pytest.approx(141 / 295)
    assert str(account) == (
        "47.8% of 4m55s in steps that count; lost steps 23.1%, start 7.1%, data 1.7%, "
        "evaluation 1.4%, saving 7.1%, down 11.9%"
    )
    # a process that goes back before steps of an earlier one undoes those too
    back = account_of([*marks, mark(405, 3, 3, 3, start=5)])
    assert back.seconds["steps"] == 29
    assert back.seconds["lost"] == 19 + 52 + 59 + 50
    assert back.seconds["down"] == 35 + 5


def test_a_clock_that_is_set_back_changes_gaps_only() -> None:
    marks = [
        mark(1000, 0, 0, 0, start=1),
        mark(400, 0, 0, 7, start=1, steps=20),  # set back while it trained
        mark(310, 1, 7, 7, start=2),  # and between two processes
        mark(330, 1, 7, 9, start=2, steps=20),
    ]
    account = account_of(marks)
    assert account.seconds["down"] == 0
    assert account.seconds["steps"] == 40 and account.total == 43


def test_a_run_that_began_anew_has_no_account_of_the_one_before() -> None:
    old = [mark(10, 0, 0, 0, start=1), mark(60, 0, 0, 5, start=1, steps=50)]
    new = [Mark(t, 1, 0, step, {"start": 1, "steps": s}, anew=True) for t, step, s in [(99, 4, 8)]]
    assert account_of([*old, *new]).seconds["steps"] == 8
    assert account_of([*old, *new]).total == 9
    # one that died before its first checkpoint is the same run
    again = [mark(99, 1, 0, 4, start=1, steps=8)]
    assert account_of([*old, *again]).seconds["lost"] == 50
    assert account_of([]).goodput == 0 and account_of([]).total == 0


def lives(generator: random.Random) -> Iterator[tuple[list[Mark], dict[int, float], float]]:
    """Yield what more and more processes write, with the seconds of each step that counts and the
    wall time; each step is trained in turn, and saved at random."""
    marks: list[Mark] = []
    clock = first = generator.uniform(1e9, 2e9)
    counted: dict[int, float] = {}
    saved = [0]
    for session in range(generator.randrange(1, 6)):
        began = clock = clock + (generator.uniform(0, 50) if session else 0)
        step = saved[-1] if generator.random() < 0.7 else generator.choice(saved)
        saved = [s for s in saved if s <= step]
        counted = {s: t for s, t in counted.items() if s <= step}
        from_step, spent = step, {"start": generator.uniform(0, 9), "steps": 0.0, "saving": 0.0}
        clock += spent["start"]
        marks.append(Mark(clock, session, from_step, step, dict(spent)))
        for _ in range(generator.randrange(12)):
            step, took = step + 1, generator.uniform(0.1, 3)
            spent["steps"], counted[step], clock = spent["steps"] + took, took, clock + took
            if generator.random() < 0.4:
                marks.append(Mark(clock, session, from_step, step, dict(spent)))
                stall = generator.uniform(0, 1)
                spent["saving"], clock = spent["saving"] + stall, clock + stall
                saved.append(step)
        marks.append(Mark(clock, session, from_step, step, dict(spent)))
        assert clock >= began
        yield marks, counted, clock - first


def test_any_lives_add_up() -> None:
    for _ in range(30):
        seed = fresh_seed()
        for marks, counted, wall in lives(random.Random(seed)):
            account = account_of(marks)
            assert account.seconds["steps"] == pytest.approx(sum(counted.values())), seed
            assert account.total == pytest.approx(wall, abs=1e-4), seed
            assert all(s >= -1e-9 for s in account.seconds.values()), seed


class Process:
    """A process whose clocks the test sets."""

    def __init__(self, run_dir: Path, wall: float, from_step: int, start: float):
        self.wall, self.spent = wall, {"start": start, "steps": 0.0, "saving": 0.0}
        self.record = TimeRecord(
            run_dir, lambda: self.spent, from_step=from_step, now=lambda: self.wall
        )

    def train(self, seconds: float) -> None:
        self.wall, self.spent["steps"] = self.wall + seconds, self.spent["steps"] + seconds

    def goodput(self, step: int) -> float:
        self.record.tick(step)
        return self.record.fields()["goodput"]


def test_the_record_is_read_back_by_the_next_process(tmp_path: Path) -> None:
    one = Process(tmp_path, wall=1010.0, from_step=0, start=10.0)
    one.train(4)
    assert one.goodput(1) == pytest.approx(4 / 14)
    one.record.mark(1, sync=True)
    one.train(3)
    one.goodput(2)
    assert len(read_marks(tmp_path)) == 2  # not a line for every step
    one.train(30)
    assert one.goodput(3) == pytest.approx(37 / 47)
    assert len(read_marks(tmp_path)) == 3
    with (tmp_path / goodput.TIME_FILE).open("ab") as file:  # killed
        file.write(b'{"time": 1050.0, "sess')
    two = Process(tmp_path, wall=1072.0, from_step=1, start=5.0)
    two.train(13)
    assert two.goodput(2) == pytest.approx((4 + 13) / (1085 - 1000))
    assert two.record.account().seconds["down"] == pytest.approx(1067 - 1047)
    two.record.close(2)
    two.record.close(2)
    assert account_of(read_marks(tmp_path)) == two.record.account()
    assert [m.session for m in read_marks(tmp_path)] == [0, 0, 0, 1, 1, 1]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    record = TimeRecord(None, dict, from_step=0)
    record.mark(1)
    record.tick(1)
    assert record.fields() == {}
    record.close(1)


def test_a_line_of_nothing_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / goodput.TIME_FILE).write_text("[]\n{}\nno\n")
    assert read_marks(tmp_path) == []
    assert str(Account({})) == "0.0% of 0s in steps that count; nothing else"
