"""kill -9 at random moments: the same curve and the same state as without, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.kills import (
    Victim,
    assert_alike,
    goes_on_from,
)
from tests.parts import one_of


def kill_again_and_again(
    whole: Victim, tmp_path: Path, seed: int, background: bool, kills: int
) -> None:
    rng, run, done = random.Random(seed), 0, 0
    while done < kills:
        run += 1
        folder = tmp_path / str(run)
        folder.mkdir()
        victim = Victim(
            whole.server, folder / "run", whole.ranks, background, rng, whole.known, whole.options
        )
        expected: list[int] = []
        for _ in range(min(kills - done, rng.randint(2, 5))):
            kill = victim.kill()
            if kill is None:
                break
            done += 1
            print(f"{done}: {kill}", flush=True)
            expected.append(kill.newest)
        victim.finish()
        assert_alike(victim.run_dir, whole.run_dir)
        assert set(goes_on_from(victim.run_dir)) <= set(expected)
        assert run <= kills, "most runs came to their end without a kill"


@pytest.mark.parametrize(("ranks", "background", "kills"), [(1, True, 3)])
def test_a_few_kills(
    whole: dict[int, Victim],
    tmp_path: Path,
    seed: int,
    ranks: int,
    background: bool,
    kills: int,
) -> None:
    kill_again_and_again(whole[ranks], tmp_path, seed, background, kills)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("ranks", "background", "kills"),
    one_of(
        [(2, True, 8), (4, False, 7), (1, False, 8), (4, True, 7), (2, False, 10), (1, True, 7)]
    ),
)
def test_many_kills(
    whole: dict[int, Victim],
    tmp_path: Path,
    seed: int,
    ranks: int,
    background: bool,
    kills: int,
) -> None:
    """With those of the fast set 50."""
    kill_again_and_again(whole[ranks], tmp_path, seed, background, kills)
