"""The sampler: pure, exactly resumable, faithful to the mixture, complete over ranks."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from pydantic import TypeAdapter

from loopcoder.config.check import batch_sizes, batch_unit
from loopcoder.config.data import ResolvedStage, StageConfig
from loopcoder.config.schema import BatchRampConfig, Config
from loopcoder.data.sampler import (
    Mixture,
    Position,
    advance,
    batch_size,
    enter_stage,
    given,
    orders_anew,
    position_at,
    samples_of_rank,
    samples_of_step,
    unreached,
)
from tests.configs import small_config


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


def staged(rng: random.Random) -> Config:
    """A config with several stages of other lengths and a batch ramp."""
    base = small_config()
    start, increment, levels = rng.randint(1, 6), rng.randint(1, 5), rng.randint(1, 5)
    ramp = BatchRampConfig(start=start, increment=increment, samples=rng.randint(1, 200))
    lengths = [rng.choice((16, 32, 64)) for _ in range(rng.randint(2, 4))]
    until = sorted(rng.sample(range(1, 20_000), len(lengths) - 1))
    stages = [
        StageConfig(until=u, seq_length=s) for u, s in zip([*until, None], lengths, strict=True)
    ]
    return replace(
        base,
        data=replace(base.data, stages=stages),
        train=replace(
            base.train, global_batch_size=start + increment * levels, batch_ramp=ramp, max_steps=300
        ),
    )


def walk(config: Config, position: Position, steps: int) -> list[tuple[Position, int]]:
    """Return each step's position before it, and its size."""
    out = []
    for _ in range(steps):
        after, size = advance(config, position)
        out.append((position, size))
        position = after
    return out


def test_walk_agrees_with_bookkeeping(rng):
    config = staged(rng)
    position = enter_stage(config.stages, Position())
    stage = samples = tokens = sample = 0
    before: dict[str, list[list[int]]] = {}
    for step in range(300):
        here = config.stages[stage]
        while here.until is not None and tokens >= here.until:
            for i in range(sample):
                runs = before.setdefault(Mixture(here.mixture).locate(i)[0], [])
                if not runs or runs[-1][0] != here.seq_length:
                    runs.append([here.seq_length, 0])
                runs[-1][1] += 1
            stage, sample = stage + 1, 0
            here = config.stages[stage]
        frozen = {domain: tuple(map(tuple, runs)) for domain, runs in before.items()}
        assert position == Position(step, stage, sample, samples, tokens, frozen)
        position, size = advance(config, position)
        assert size in batch_sizes(config)
        sample, samples = sample + size, samples + size
        tokens += size * here.seq_length


def test_what_a_domain_gave_is_kept_by_length(rng):
    """Equal lengths are one run, however many stages have them; a domain keeps what it gave while
    it is left out."""
    both = {"text": 1.0, "code": 1.0}
    lengths = [(8, both), (8, {"code": 1.0}), (16, both), (8, both)]
    stages = [ResolvedStage(mixture, length, 1e4, until=1) for length, mixture in lengths]
    position = Position()
    for _ in range(3):
        stage = position.stage
        position = enter_stage(
            stages[: stage + 2], replace(position, sample=10, tokens=position.tokens + 1)
        )
    assert position.before == {"text": ((8, 5), (16, 5)), "code": ((8, 15), (16, 5))}
    assert given(stages[3], replace(position, sample=1)) == {
        "text": ((8, 5), (16, 5)),
        "code": ((8, 15), (16, 5), (8, 1)),
    }
    older = Position(sample=10, tokens=1, before=None)
    assert enter_stage(stages[:2], older) == Position(stage=1, tokens=1, before=None)


def test_any_position_continues_the_walk(rng):
    config = staged(rng)
    whole = walk(config, enter_stage(config.stages, Position()), 300)
    for start in rng.sample(range(300), 10):
        saved = TypeAdapter(Position).validate_json(json.dumps(asdict(whole[start][0])))
        assert walk(config, saved, 300 - start) == whole[start:]


def test_a_position_far_away_is_that_of_the_walk(rng):
    for _ in range(20):
        config = staged(rng)
        if rng.random() < 0.5:
            config = replace(config, train=replace(config.train, batch_ramp=None))
        positions = [before for before, _ in walk(config, Position(), 200)]
        for _ in range(10):
            start, end = sorted(rng.sample(range(200), 2))
            assert position_at(config, positions[start], end) == positions[end]


def test_what_a_run_does_not_come_to_is_said(rng):
    """A batch that does not come to its full size, and a stage that does not begin."""
    for _ in range(20):
        config, steps = staged(rng), rng.randint(1, 200)
        config = replace(config, train=replace(config.train, max_steps=steps))
        walked = walk(config, Position(), steps)
        said = list(unreached(config, walked[rng.randrange(steps)][0]))
        (last, size), full = walked[-1], config.train.global_batch_size
        begun, stages = last.stage + 1, len(config.stages)
        ramps = last.samples < config.train.batch_ramp.samples
        assert [note.split()[2] for note in said] == ["batch"] * ramps + ["stage"] * (
            begun < stages
        )
        assert all(note.startswith("warning: ") for note in said)
        if ramps:
            assert f"ends at {size} of {full} sequence" in said[0]
            assert said[0].endswith(f"max_steps={steps} takes, {last.samples + size}")
        if begun < stages:
            assert f"stage {begun + 1} of {stages} does not begin" in said[-1]
            assert said[-1].endswith(
                f", {last.tokens + size * config.stages[last.stage].seq_length}"
            )
        assert list(unreached(config, replace(last, step=steps))) == []


@pytest.mark.parametrize(
    ("position", "said"),
    [
        (
            Position(),
            ["stage 2 begins text and code anew, in sequences of 16", "stage 4 begins code"],
        ),
        (
            Position(stage=1, sample=0, before={"text": ((32, 4),)}),
            ["stage 2 begins text", "stage 4"],
        ),
        (Position(stage=1, sample=8, before={"text": ((32, 4),)}), ["stage 4 begins code anew"]),
        (Position(stage=3, sample=8), []),
        (Position(before=None), []),
    ],
)
def test_what_begins_anew_at_another_length_is_said(position, said):
    base, text = small_config(), {"text": 1.0}
    stages = [
        StageConfig(until=9),
        StageConfig(until=99, seq_length=16),
        StageConfig(until=999, seq_length=16, mixture=text),
        StageConfig(mixture={"code": 1.0}),
    ]
    config = replace(base, data=replace(base.data, stages=stages, reader="megatron"))
    notes = list(orders_anew(config, position))
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True))
    packed = replace(config, data=replace(config.data, reader="packed"))
    assert not list(orders_anew(packed, position))


def test_a_stage_ends_at_the_first_step_that_reaches_until():
    config = small_config()
    stages = [StageConfig(until=64), StageConfig(until=65), StageConfig()]
    config = replace(
        config,
        data=replace(config.data, seq_length=16, stages=stages),
        train=replace(config.train, global_batch_size=2),
    )
    seen = [(p.stage, p.sample, p.tokens) for p, _ in walk(config, Position(), 5)]
    assert seen == [(0, 0, 0), (0, 2, 32), (1, 0, 64), (2, 0, 96), (2, 2, 128)]
    # One step may pass the ends of several stages; the last stage never ends.
    assert enter_stage(config.stages, Position(tokens=64)).stage == 1
    assert enter_stage(config.stages, Position(tokens=65, sample=9)) == Position(
        stage=2, tokens=65, before={"code": ((16, 5),), "text": ((16, 4),)}
    )
    assert enter_stage(config.stages, Position(stage=2, tokens=10**9)).stage == 2


def test_ramp_grows_in_equal_stretches(rng):
    start, increment, levels = rng.randint(1, 9), rng.randint(1, 9), rng.randint(1, 6)
    stretch = rng.randint(1, 50)
    ramp = BatchRampConfig(start=start, increment=increment, samples=stretch * levels)
    full = start + increment * levels
    for samples in range(stretch * levels + 3):
        level = min(samples // stretch, levels)
        assert batch_size(full, ramp, samples) == start + increment * level
    assert batch_size(full, None, 0) == full


def test_ramp_takes_every_level_in_order(rng):
    """Where a stretch holds at least one batch, no level is left out."""
    config = staged(rng)
    full, ramp = config.train.global_batch_size, config.train.batch_ramp
    ramp = replace(ramp, samples=full * (full - ramp.start) // ramp.increment)
    config = replace(config, train=replace(config.train, batch_ramp=ramp))
    steps = walk(config, Position(), 300)
    sizes = [size for _, size in steps]
    assert sizes == sorted(sizes)
    assert sorted(set(sizes)) == batch_sizes(config)
    assert [p.samples for p, _ in steps] == [sum(sizes[:i]) for i in range(300)]
    assert [size == full for _, size in steps] == [p.samples >= ramp.samples for p, _ in steps]


def test_equal_weights_halve_every_even_batch(rng):
    mixture = Mixture({"text": 1.0, "code": 1.0})
    for _ in range(50):
        start, size = 2 * rng.randrange(10**9), 2 * rng.randint(1, 40)
        counts = Counter(mixture.locate(i)[0] for i in range(start, start + size))
        assert counts == {"text": size // 2, "code": size // 2}


# The rule "always the domain furthest behind" would leave the last of these more than a sample
# behind.
WEIGHTS = [
    {"text": 1.0},
    {"text": 0.3, "code": 0.7},
    {"text": 1.0, "code": 0.0003},
    {"a": 0.1, "b": 0.2, "c": 0.7},
    {"a": 3.0, "b": 12.0, "c": 1.0, "d": 1.0, "e": 35.0, "f": 35.0},
]


def random_weights(rng: random.Random) -> dict[str, float]:
    largest = rng.choice((3, 10, 40))
    return {f"domain{i}": float(rng.randint(1, largest)) for i in range(rng.randint(1, 8))}


@pytest.mark.parametrize("case", range(len(WEIGHTS) + 3))
def test_every_prefix_is_within_a_sample_of_the_weights(rng, case):
    weights = WEIGHTS[case] if case < len(WEIGHTS) else random_weights(rng)
    mixture = Mixture(weights)
    exact = {d: Fraction(str(w)) for d, w in weights.items()}
    total = sum(exact.values())
    taken = Counter()
    # Weights are decimals: the pattern must have repeated after a batch that holds them exactly.
    unit = batch_unit(weights)
    for i in range(unit):
        taken[mixture.locate(i)[0]] += 1
        for domain, weight in exact.items():
            assert abs(taken[domain] - weight / total * (i + 1)) <= 1, (domain, i)
    assert taken == {d: weight / total * unit for d, weight in exact.items()}
    assert unit % len(mixture.pattern) == 0


def test_locate_enumerates_each_domain(rng):
    mixture = Mixture(random_weights(rng))
    following = Counter()
    for i in range(3 * len(mixture.pattern) + 5):
        domain, index = mixture.locate(i)
        assert index == following[domain]
        following[domain] += 1


def test_locate_far_away_without_walking(rng):
    mixture = Mixture(random_weights(rng))
    period = len(mixture.pattern)
    cycles = 10**11 + rng.randrange(10**6)
    counts = Counter(mixture.locate(i)[0] for i in range(period))
    for place in range(period):
        domain, index = mixture.locate(place)
        assert mixture.locate(cycles * period + place) == (domain, cycles * counts[domain] + index)


def test_order_of_domains_in_the_config_does_not_matter(rng):
    weights = random_weights(rng)
    turned = dict(reversed(weights.items()))
    samples = range(2 * len(Mixture(weights).pattern))
    assert [Mixture(weights).locate(i) for i in samples] == [
        Mixture(turned).locate(i) for i in samples
    ]


def test_a_step_is_a_permutation_of_its_range(rng):
    position = Position(step=rng.randrange(10**6), sample=rng.randrange(10**9))
    size = rng.randint(64, 200)
    samples = samples_of_step(position, size, 5, 0)
    assert sorted(samples) == list(range(position.sample, position.sample + size))
    assert np.array_equal(samples, samples_of_step(position, size, 5, 0))
    # One of 64! orders: two that agree by chance do not happen.
    for other in (
        samples_of_step(position, size, 6, 0),
        samples_of_step(position, size, 5, 1),
        samples_of_step(replace(position, step=position.step + 1), size, 5, 0),
    ):
        assert not np.array_equal(samples, other)
        assert sorted(other) == sorted(samples)


@pytest.mark.parametrize("dp_size", [1, 2, 3, 4, 6])
def test_ranks_share_a_step(rng, dp_size):
    micro, count = rng.randint(1, 4), rng.randint(1, 5)
    samples = samples_of_step(Position(), 12 * micro * count, rng.randrange(2**31), 0)
    parts = [samples_of_rank(samples, rank, dp_size, micro) for rank in range(dp_size)]
    assert {part.shape for part in parts} == {(12 * count // dp_size, micro)}
    everything = np.concatenate([part.ravel() for part in parts])
    assert sorted(everything) == sorted(samples)
    # Microbatch m of all ranks is a contiguous piece of the step, whatever the number of ranks.
    for m, piece in enumerate(np.split(samples, 12 * count // dp_size)):
        assert np.array_equal(np.concatenate([part[m] for part in parts]), piece)


def test_two_ranks_take_the_microbatches_of_one_in_turn(rng):
    samples = samples_of_step(Position(), 24, rng.randrange(2**31), 0)
    alone = samples_of_rank(samples, 0, 1, 3)
    for rank in range(2):
        assert np.array_equal(samples_of_rank(samples, rank, 2, 3), alone[rank::2])


def test_domains_are_spread_over_ranks():
    """With a pattern text, code, text, code and no permutation, each of two ranks would see one
    domain only."""
    mixture = Mixture({"text": 1.0, "code": 1.0})
    seen = [set(), set()]
    for step in range(20):
        samples = samples_of_step(Position(step, sample=8 * step), 8, 1, 0)
        for rank, domains in enumerate(seen):
            domains |= {mixture.locate(i)[0] for i in samples_of_rank(samples, rank, 2, 1).ravel()}
    assert seen == [{"text", "code"}] * 2


def test_steps_of_a_stage_cover_it_without_gap(rng):
    config = staged(rng)
    for (p, size), (q, _) in pairwise(walk(config, Position(), 300)):
        assert q.sample == (p.sample + size if q.stage == p.stage else 0)
