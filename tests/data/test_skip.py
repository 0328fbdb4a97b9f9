"""Samples that are left out: once, exactly those, whatever the run is stopped at."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
from pydantic import TypeAdapter

from loopcoder.config.check_data import check_data
from loopcoder.config.data import SkipConfig, StageConfig
from loopcoder.config.schema import BatchRampConfig, Config
from loopcoder.data.sampler import (
    Position,
    Skipped,
    advance,
    begin_step,
    enter_stage,
    position_at,
    samples_of_step,
    unreached,
)
from loopcoder.errors import Problem
from tests.configs import small_config


def skipping(*skips: tuple[int, int], max_steps: int = 60, **train: object) -> Config:
    base = small_config()
    return replace(
        base,
        data=replace(base.data, seq_length=16, skip=[SkipConfig(*skip) for skip in skips]),
        train=replace(base.train, **{"global_batch_size": 8, "max_steps": max_steps} | train),
    )


def taken(config: Config, steps: int, position: Position | None = None) -> list[list[int]]:
    """The samples of each step, in order."""
    position, found = position or Position(), []
    for _ in range(steps):
        begun = begin_step(config, position)
        position, size = advance(config, position)
        found.append(sorted(samples_of_step(begun, size, 1, begun.stage).tolist()))
    return found


@pytest.mark.parametrize("step", [1, 5, 20])
@pytest.mark.parametrize("steps", [1, 7])
def test_a_window_is_left_out_and_nothing_else(step: int, steps: int) -> None:
    plain, config = skipping(), skipping((step, steps))
    whole = taken(plain, 20 + steps)
    assert taken(config, 20) == whole[: step - 1] + whole[step - 1 + steps :]
    before, after = (position_at(c, Position(), 20) for c in (plain, config))
    assert (before.tokens, before.samples) == (after.tokens, after.samples)
    assert after.sample == before.sample + 8 * steps
    assert after.skipped == (Skipped(step, steps, 0, 8 * (step - 1), 8 * steps),)


def test_in_a_ramp_the_window_grows_as_the_steps_would() -> None:
    """The ramp itself goes on with what is trained."""
    ramp = BatchRampConfig(start=2, increment=2, samples=40)
    plain, config = (skipping(*skips, batch_ramp=ramp) for skips in ((), [(3, 6)]))
    whole, found = taken(plain, 30), taken(config, 30)
    window = sum(len(step) for step in whole[2:8])
    assert found[:2] == whole[:2]
    assert [len(step) for step in found] == [len(step) for step in whole]
    assert found[2:] == [[sample + window for sample in step] for step in whole[2:]]


def test_a_stage_lasts_until_its_tokens_are_trained() -> None:
    """What it leaves out is of this stage, and belongs to what its domains gave."""
    stages = [StageConfig(until=8 * 16 * 4), StageConfig(mixture={"code": 1.0})]
    config = skipping((2, 5), (5, 1))
    config = replace(config, data=replace(config.data, stages=stages))
    position = position_at(config, Position(), 4)
    assert (position.stage, position.sample) == (1, 0)
    assert position.before == {"code": ((16, 36),), "text": ((16, 36),)}
    begun = begin_step(config, position)
    assert (begun.sample, [s.stage for s in begun.skipped]) == (8, [0, 1])


def test_any_stop_goes_on_with_the_same_samples(seed: int) -> None:
    """Also just before and after a window, and with the entry given again or no more."""
    rng = random.Random(seed)
    skips = [(step, rng.randint(1, 9)) for step in rng.sample(range(1, 50), 4)]
    ramp = BatchRampConfig(start=2, increment=2, samples=rng.randint(1, 200))
    config = skipping(*skips, batch_ramp=ramp)
    whole = taken(config, 60)
    positions = [Position()]
    for _ in range(60):
        positions.append(advance(config, positions[-1])[0])
    flat = np.concatenate(whole)
    assert len(set(flat.tolist())) == len(flat)
    for stop in [*range(0, 60, 7), *(step + d for step, _ in skips for d in (-1, 0))]:
        text = json.dumps(asdict(positions[stop]))
        saved = enter_stage(config.stages, TypeAdapter(Position).validate_json(text))
        assert saved == positions[stop]
        assert taken(config, 60 - stop, saved) == whole[stop:]
        later = [skip for skip in skips if skip[0] > stop]
        assert taken(skipping(*later, batch_ramp=ramp), 60 - stop, saved) == whole[stop:]
        for end in rng.sample(range(stop, 61), 2):
            assert position_at(config, saved, end) == positions[end]
        begun = begin_step(config, saved)
        assert begin_step(config, begun) == begun


def test_two_windows_before_one_step_are_one_entry() -> None:
    def problems(*skips: tuple[int, int]) -> list[Problem]:
        return [p for p in check_data(skipping(*skips)) if "data.skip" in p.fact]

    (problem,) = problems((7, 2), (3, 1), (7, 5))
    assert problem.fact == "data.skip.0.step=7 data.skip.2.step=7"
    assert "data.skip.0.steps=7" in problem.fix
    assert not problems((7, 2), (3, 1), (8, 5))


def test_a_window_beyond_the_end_is_said() -> None:
    (said,) = unreached(skipping((61, 2), (60, 1)), Position())
    assert "data.skip.0" in said
    assert "train.max_steps=60" in said
