"""Which samples a step trains on: pure functions of the config, the seed and the position.

Nothing here reads data or remembers anything, so any rank of any layout computes its own part of
any step, and resuming costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

import numpy as np

from loopcoder.config.data import ResolvedStage
from loopcoder.config.mixture import lowest_terms
from loopcoder.config.schema import BatchRampConfig, Config, TrainConfig
from loopcoder.errors import counted

Given = tuple[tuple[int, int], ...]
"""What a domain gave, oldest first: (tokens per sequence, sequences). Neighbours have other
lengths."""


@dataclass(frozen=True)
class Skipped:
    """Samples that `data.skip` left out."""

    step: int
    """Before which they were."""
    steps: int
    """That would have taken them."""
    stage: int
    sample: int
    """The first of them, in the stage."""
    samples: int


@dataclass(frozen=True)
class Position:
    """Where the run stands in its data, before a step."""

    step: int = 0
    """Optimizer steps done."""
    stage: int = 0
    """Index of the data stage."""
    sample: int = 0
    """Global sample index in the stage: sequences that all ranks together took from it, and those
    that were left out."""
    samples: int = 0
    """Sequences of the whole run so far; what was left out does not count."""
    tokens: int = 0
    """Tokens of the whole run so far; what was left out does not count."""
    before: dict[str, Given] | None = field(default_factory=dict)
    """What each domain gave before this stage, which continues there. None: the run was begun by
    a commit where every stage had an order of its own, and keeps to that."""
    skipped: tuple[Skipped, ...] = ()
    """What was left out so far."""


def batch_size(full: int, ramp: BatchRampConfig | None, samples: int) -> int:
    """Return the sequences of a step after `samples` sequences; a ramp grows in equal stretches of
    samples."""
    if ramp is None or samples >= ramp.samples:
        return full
    increments = (full - ramp.start) // ramp.increment
    return ramp.start + ramp.increment * (samples * increments // ramp.samples)


def sequences_of(train: TrainConfig, samples: int, steps: int) -> int:
    """Return the sequences of some steps after `samples` sequences."""
    ramp, full, done = train.batch_ramp, train.global_batch_size, 0
    while ramp is not None and steps > 0 and samples + done < ramp.samples:
        done += batch_size(full, ramp, samples + done)
        steps -= 1
    return done + steps * full


def begin_step(config: Config, position: Position) -> Position:
    """Return the position with that behind it which `data.skip` leaves out before the next step:
    samples of its stage, as many as the steps would take. A second time nothing is left out."""
    step = position.step + 1
    steps = {skip.step: skip.steps for skip in config.data.skip}.get(step)
    if steps is None or any(done.step == step for done in position.skipped):
        return position
    samples = sequences_of(config.train, position.samples, steps)
    skipped = Skipped(step, steps, position.stage, position.sample, samples)
    return replace(
        position,
        sample=position.sample + samples,
        skipped=(*position.skipped, skipped),
    )


def advance(config: Config, position: Position) -> tuple[Position, int]:
    """Return the position after one step, and the number of sequences in that step."""
    position = begin_step(config, position)
    size = batch_size(config.train.global_batch_size, config.train.batch_ramp, position.samples)
    stage = config.stages[position.stage]
    after = replace(
        position,
        step=position.step + 1,
        sample=position.sample + size,
        samples=position.samples + size,
        tokens=position.tokens + size * stage.seq_length,
    )
    return enter_stage(config.stages, after), size


def enter_stage(stages: list[ResolvedStage], position: Position) -> Position:
    """Move on to the next stage where the current one has had its tokens."""
    until = stages[position.stage].until
    if until is None or position.tokens < until or position.stage == len(stages) - 1:
        return position
    before = None if position.before is None else given(stages[position.stage], position)
    following = replace(position, stage=position.stage + 1, sample=0, before=before)
    return enter_stage(stages, following)


def trained_stage(stages: list[ResolvedStage], position: Position) -> int:
    """Return the index of the stage that the last step before a position trained on: after the last
    step of a stage, the position is at the start of the next one.

    Other data may have fewer stages: then it is their last one. A stage that is shorter than the
    step before it counts as trained."""
    stage = position.stage - 1 if position.sample == 0 else position.stage
    return min(max(stage, 0), len(stages) - 1)


def given(stage: ResolvedStage, position: Position) -> dict[str, Given]:
    """Return what each domain gave up to a position in this stage; of a run whose stages have
    orders of their own, in the stage alone."""
    found = dict(position.before or {})
    for domain, count in Mixture(stage.mixture).counts(position.sample).items():
        earlier = found.get(domain, ())
        if earlier and earlier[-1][0] == stage.seq_length:
            found[domain] = (*earlier[:-1], (stage.seq_length, earlier[-1][1] + count))
        elif count:
            found[domain] = (*earlier, (stage.seq_length, count))
    return found


def position_at(config: Config, position: Position, step: int) -> Position:
    """Return the position after step `step` of a run that stands at another one; only in a ramp of
    the batch it is walked to."""
    train = config.train
    skips = sorted(skip.step - 1 for skip in config.data.skip)
    while position.step < step:
        position = begin_step(config, position)
        if train.batch_ramp is not None and position.samples < train.batch_ramp.samples:
            position, _ = advance(config, position)
            continue
        end = next((before for before in skips if position.step < before < step), step)
        stage, steps = config.stages[position.stage], end - position.step
        tokens = train.global_batch_size * stage.seq_length
        if stage.until is not None and position.stage < len(config.stages) - 1:
            steps = min(steps, max(1, -(-(stage.until - position.tokens) // tokens)))
        taken = steps * train.global_batch_size
        after = replace(
            position,
            step=position.step + steps,
            sample=position.sample + taken,
            samples=position.samples + taken,
            tokens=position.tokens + steps * tokens,
        )
        position = enter_stage(config.stages, after)
    return position


def unreached(config: Config, position: Position) -> Iterator[str]:
    """Yield what to say of a batch that does not come to its full size, and of data stages and
    skips that do not begin, before a run ends that stands at a position."""
    train, stages = config.train, config.stages
    if position.step >= train.max_steps:
        return
    last = position_at(config, position, train.max_steps - 1)  # where its last step begins
    if train.batch_ramp is not None and last.samples < train.batch_ramp.samples:
        size = batch_size(train.global_batch_size, train.batch_ramp, last.samples)
        yield (
            f"warning: the batch ends at {size} of {counted(train.global_batch_size, 'sequence')}: "
            f"train.batch_ramp.samples={train.batch_ramp.samples} is more than what "
            f"train.max_steps={train.max_steps} takes, {last.samples + size}"
        )
    if last.stage < len(stages) - 1:
        until, (end, _) = stages[last.stage].until, advance(config, last)
        yield (
            f"warning: data stage {last.stage + 2} of {len(stages)} does not begin: "
            f"data.stages.{last.stage}.until={until} is not less than the tokens that "
            f"train.max_steps={train.max_steps} takes, {end.tokens}"
        )
    for index, skip in enumerate(config.data.skip):
        if skip.step > train.max_steps:
            yield (
                f"warning: data.skip.{index} leaves nothing out: its step {skip.step} is more than "
                f"train.max_steps={train.max_steps}"
            )


def orders_anew(config: Config, position: Position) -> Iterator[str]:
    """Yield what to say of domains that come in sequences of another length in a later stage, with
    a reader whose order is made for one length."""
    if config.data.reader != "megatron" or position.before is None:
        return
    lengths = {domain: runs[-1][0] for domain, runs in position.before.items()}
    for index, stage in enumerate(config.stages[position.stage :], position.stage):
        length = stage.seq_length
        changed = [d for d in stage.mixture if lengths.get(d, length) != length]
        if changed and (index > position.stage or position.sample == 0):
            yield (
                f"data stage {index + 1} begins {' and '.join(changed)} anew, in sequences of "
                f"{counted(length, 'token')} and not of {lengths[changed[0]]}: some documents are "
                "read twice; a run with data.reader=packed goes on where a domain stands"
            )
        lengths |= dict.fromkeys(stage.mixture, length)


@dataclass(frozen=True)
class Mixture:
    """Interleaves domains by weight so that any stretch of samples is as close to the weights as it
    can be.

    The pattern repeats after `period` samples; with two equal weights it is code, text, code, text,
    and every even batch is exactly half code.
    """

    weights: dict[str, float]
    """Weight of each domain, by samples of equal length."""

    @cached_property
    def domains(self) -> list[str]:
        return sorted(self.weights)

    @cached_property
    def pattern(self) -> np.ndarray:
        """Domain index of each sample of one period.

        Every prefix has each domain within one sample of its share: of the domains that may come
        next without running ahead, the one that would fall behind first (R. Tijdeman, The chairman
        assignment problem, 1980).
        """
        counts = lowest_terms(self.weights)
        period = sum(counts.values())
        shares = [Fraction(counts[d], period) for d in self.domains]
        slack = Fraction(1, max(1, 2 * len(shares) - 2))
        taken = [0] * len(shares)
        out = np.empty(period, dtype=np.int64)
        for i in range(period):
            due = [d for d, s in enumerate(shares) if s * (i + 1) - taken[d] >= slack]
            out[i] = min(due, key=lambda d: (taken[d] + 1 - slack) / shares[d], default=0)
            taken[out[i]] += 1
        return out

    @cached_property
    def _before(self) -> np.ndarray:
        """Samples of each domain before each place of the pattern. [period + 1, domains]"""
        one_hot = self.pattern[:, None] == np.arange(len(self.domains))
        return np.concatenate([np.zeros((1, len(self.domains)), np.int64), one_hot.cumsum(0)])

    def locate(self, sample: int) -> tuple[str, int]:
        """Return the domain of a sample of the mixture and its index within that domain."""
        cycle, place = divmod(sample, len(self.pattern))
        domain = int(self.pattern[place])
        return self.domains[domain], int(
            cycle * self._before[-1, domain] + self._before[place, domain]
        )

    def counts(self, samples: int) -> dict[str, int]:
        """Return how many of the first samples are of each domain."""
        cycles, place = divmod(samples, len(self.pattern))
        counts = cycles * self._before[-1] + self._before[place]
        return dict(zip(self.domains, counts.tolist(), strict=True))


def samples_of_step(position: Position, size: int, seed: int, stage: int) -> np.ndarray:
    """Return the sample indices of a step, permuted so that no rank sees one domain only. [size]"""
    order = np.random.default_rng([seed, stage, position.step]).permutation(size)
    return position.sample + order


def samples_of_rank(
    samples: np.ndarray, dp_rank: int, dp_size: int, micro_batch_size: int
) -> np.ndarray:
    """Cut a step's samples into microbatches and return those of one data-parallel rank.
    [microbatches, micro_batch_size]"""
    return samples.reshape(-1, dp_size, micro_batch_size)[:, dp_rank]


def rank_of_row(row: int, dp_size: int, micro_batch_size: int) -> tuple[int, int]:
    """Return the data-parallel rank that a row of a step's samples goes to, and in which of its
    microbatches, as `samples_of_rank` deals them out."""
    part = row // micro_batch_size
    return part % dp_size, part // dp_size
