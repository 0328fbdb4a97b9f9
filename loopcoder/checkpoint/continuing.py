"""What a run that goes on keeps: the meaning of its position in the data, and its schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from loopcoder.checkpoint.format import Checkpoint, complete
from loopcoder.checkpoint.sources import written
from loopcoder.checkpoint.state import CheckpointState
from loopcoder.config.corpora import joined_corpora
from loopcoder.config.data import ResolvedStage
from loopcoder.config.fields import typed
from loopcoder.config.mixture import lowest_terms
from loopcoder.config.schema import Config
from loopcoder.errors import Problem, counted
from loopcoder.optim.schedule import (
    branching_step,
    decay_length,
    learning_rate,
    vocabulary_share,
    warmup_steps,
)

_JUMP = 0.01
"""Relative difference of the learning rate from which on it is said."""


def other_position(
    checkpoint: Checkpoint, state: CheckpointState, before: Config, config: Config
) -> Iterator[Problem]:
    """Yield what would make the position of a checkpoint mean other sequences."""
    branch = (
        f"checkpoint.init_from={checkpoint.place} checkpoint.init_position=false "
        "run_dir=ANOTHER_FOLDER to start anew from these weights"
    )
    repeated = "some sequences would be trained twice and others never"
    if before.seed != config.seed:
        yield Problem(
            f"seed={config.seed}, steps up to {state.step} were trained with {before.seed}",
            f"the order of the data follows from the seed: {repeated}",
            f"seed={before.seed}, or {branch}",
        )
    if config.data.reader not in (before.data.reader, "auto"):
        yield Problem(
            f"data.reader={config.data.reader}, steps up to {state.step} were trained with "
            f"{before.data.reader}",
            f"each has an order of its own: {repeated}",
            f"data.reader={before.data.reader}, or {branch}",
        )
    yield from _other_skips(checkpoint, state, config)
    stage = state.position.stage
    if stage >= len(config.stages):
        yield Problem(
            f"data.stages has {len(config.stages)} of the {len(before.stages)} stages that "
            f"{checkpoint.place} was trained with, and stands in number {stage + 1}",
            "its position counts the sequences of that stage",
            f"data.stages={as_override(before.stages)}, or {branch}",
        )
        return
    for index in range(stage + 1):
        old, new = before.stages[index], config.stages[index]
        changed = [
            f"{name}: {getattr(old, name)} -> {getattr(new, name)}"
            for name in ("until", "mixture", "seq_length")
            if _value(old, name) != _value(new, name) and not (name == "until" and index == stage)
        ]
        if changed:
            yield Problem(
                f"data stage {index + 1} has changed after it was trained up to step {state.step} "
                f"({', '.join(changed)})",
                f"the position in it would mean other sequences: {repeated}",
                f"{_corpora(before, config)}"
                f"data.stages={as_override(_from_here(state, before, config, index))} "
                f"for the change from here on, or {branch}",
            )
            return


def _other_skips(
    checkpoint: Checkpoint, state: CheckpointState, config: Config
) -> Iterator[Problem]:
    """Yield the entries of data.skip that a checkpoint is past, and that were not applied as they
    stand there."""
    applied = {done.step: done.steps for done in state.position.skipped}
    for index, skip in enumerate(config.data.skip):
        steps = applied.get(skip.step)
        if skip.step > state.step or steps == skip.steps:
            continue
        key = f"data.skip.{index}"
        had = "nothing was" if steps is None else f"samples of {counted(steps, 'step')} were"
        older = [c.path for c in complete(checkpoint.path.parent) if c.step < skip.step]
        again = (
            f"to go back: run_dir=ANOTHER_FOLDER checkpoint.init_from={older[-1]} "
            "checkpoint.init_optimizer=true checkpoint.init_position=true"
            if older
            else f"a checkpoint of before step {skip.step}, of which none is kept"
        )
        kept = f", {key}.steps={steps} as it was" if steps is not None else ""
        yield Problem(
            f"{key}.step={skip.step} {key}.steps={skip.steps}, {checkpoint.place} is at step "
            f"{state.step}, and {had} left out before step {skip.step}",
            "what has been trained cannot be left out any more",
            f"{key}.step={state.step + 1} to leave out what comes next{kept}, or {again}",
        )


def _corpora(before: Config, config: Config) -> str:
    """Return the override that names the corpora of all stages, of those that are over too."""
    corpora = joined_corpora(before.data) | joined_corpora(config.data)
    if not corpora:
        return ""
    named = [replace(corpus, name=name) for name, corpus in corpora.items()]
    return typed(f"data.corpora={written(named)}") + " "


def _value(stage: ResolvedStage, name: str) -> object:
    value = getattr(stage, name)
    return lowest_terms(value) if name == "mixture" else value


def _from_here(
    state: CheckpointState, before: Config, config: Config, changed: int
) -> list[ResolvedStage]:
    """Return the stages as they were trained up to this position, then those that are asked for.

    Args:
        changed: The first stage that differs. A stage that is over stays as it was; the one of this
            position ends here and goes on as it is asked for.
    """
    stage, tokens = state.position.stage, state.position.tokens
    past, asked = list(before.stages[: stage + 1]), list(config.stages[stage + 1 :])
    if changed == stage:
        past[-1] = replace(past[-1], until=tokens)
        asked.insert(0, config.stages[stage])
    over = past[-1].until
    if over is not None:
        past += [s for s in asked if s.until is None or s.until > over]
    return [*past[:-1], replace(past[-1], until=None)]


def as_override(stages: list[ResolvedStage]) -> str:
    """Write stages as a value of the command line, quoted for a shell."""
    written = []
    for stage in stages:
        mixture = ",".join(f"{d}:{n}" for d, n in lowest_terms(stage.mixture).items())
        fields = [f"mixture:{{{mixture}}}", f"seq_length:{stage.seq_length}"]
        fields.append(f"rope_theta:{stage.rope_theta:g}")
        if stage.until is not None:
            fields.insert(0, f"until:{stage.until}")
        written.append("{" + ",".join(fields) + "}")
    return f"'[{','.join(written)}]'"


def trained_warmup(state: CheckpointState, before: Config, config: Config) -> int | None:
    """Return the steps of warm-up that a run goes on with; None: those that its config makes.

    A share of max_steps was a share of the max_steps of then: a longer run does not warm up again.
    """
    old, new = before.optim.schedule, config.optim.schedule
    if (old.warmup_fraction, old.warmup_steps) != (new.warmup_fraction, new.warmup_steps):
        return None
    if state.warmup_steps is not None:
        return state.warmup_steps
    return warmup_steps(before.optim, before.train.max_steps)


def jump_of_the_rate(
    state: CheckpointState, before: Config, config: Config, others: Sequence[Checkpoint] = ()
) -> str | None:
    """Return what to say where the schedule has another rate at this step than was trained.

    Args:
        others: Complete checkpoints of the run.
    """
    step, last = state.step, config.train.max_steps
    if step >= last:
        return None
    old_warmup, warmup = (trained_warmup(state, before, c) for c in (before, config))
    now = learning_rate(before.optim, step, before.train.max_steps, old_warmup)
    asked, following = (learning_rate(config.optim, s, last, warmup) for s in (step, step + 1))
    # A decay that begins here is no jump: its schedule has the same rate at this step. Nor is one
    # that ends at the next step, where it has come to the rate that this one ended with.
    if any(abs(rate - now) <= _JUMP * max(rate, now) for rate in (asked, following)):
        return None
    jump = (
        f"warning: the learning rate jumps from {now:.3g} (step {step}) to {following:.3g} "
        f"(step {step + 1})"
    )
    if mend := _shorter_decay(config, step, now, warmup):
        return f"{jump}, since {mend}"
    cause = "`optim` has changed"
    vocabulary = config.optim.vocabulary_warmup_steps  # whose rate jump_of_the_vocabulary compares
    if replace(before.optim, vocabulary_warmup_steps=vocabulary) == config.optim:
        cause = f"the schedule now ends at step {last} and not at {before.train.max_steps}"
    branching = branching_step(before.optim, before.train.max_steps, old_warmup)
    stable = [c for c in others if branching is not None and c.step <= branching]
    branch = "a wsd run (optim=adam_wsd) that is extended before its decay begins"
    if branching is not None:
        branch = f"a branch from a checkpoint of up to step {branching}, of which none is kept"
    if stable:
        branch = (
            f"from step {stable[-1].step}, before the decay (not kept by a run that goes on past "
            "it): run_dir=ANOTHER_FOLDER "
            f"checkpoint.init_from={stable[-1].place} checkpoint.init_optimizer=true "
            "checkpoint.init_position=true"
        )
    return (
        f"{jump}, since {cause}. Without a jump: optim.schedule.kind=constant "
        f"optim.schedule.warmup_steps=0 optim.lr={now:.4g}, or {branch}"
    )


def jump_of_the_vocabulary(step: int, before: Config, config: Config) -> str | None:
    """Return what to say where embedding and head, which are at a share of their rate at this step,
    have another one at the next."""
    old, new = before.optim.vocabulary_warmup_steps, config.optim.vocabulary_warmup_steps
    share, following = (
        vocabulary_share(before.optim, step),
        vocabulary_share(config.optim, step + 1),
    )
    if step >= config.train.max_steps or abs(following - share) <= 1 / max(1, old) + _JUMP:
        return None
    return (
        f"warning: embedding and head jump from {share:.2g} of their rate (step {step}) to "
        f"{following:.2g}, since optim.vocabulary_warmup_steps is {new} and not {old}; "
        f"optim.vocabulary_warmup_steps={old} goes on without a jump"
    )


def _shorter_decay(config: Config, step: int, now: float, warmup: int | None) -> str | None:
    """Return what to say of a decay that is longer than what is left of a run, where one that
    begins at this step is no jump."""
    optim, last = config.optim, config.train.max_steps
    schedule, length, left = optim.schedule, decay_length(optim, last), last - step
    fitting = replace(optim, schedule=replace(schedule, decay_steps=left))
    rate = learning_rate(fitting, step, last, warmup)
    if schedule.kind != "wsd" or length <= left or abs(rate - now) > _JUMP * max(rate, now):
        return None
    asked, longer = f"optim.schedule.decay_fraction={schedule.decay_fraction:g}", ""
    if schedule.decay_steps is not None:
        asked = f"optim.schedule.decay_steps={schedule.decay_steps}"
        longer = f", or train.max_steps={step + length}"
    return (
        f"the decay takes {counted(length, 'step')} ({asked}), and {counted(left, 'step')} "
        f"{'is' if left == 1 else 'are'} left up to train.max_steps={last}. Without a jump: "
        f"optim.schedule.decay_steps={left}{longer}"
    )
