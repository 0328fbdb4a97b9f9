"""Rules of the section `objective`: what fits the number of loops, and what excludes what."""

from __future__ import annotations

from collections.abc import Iterator

from loopcoder.config.fields import as_override
from loopcoder.config.objective import ObjectiveConfig
from loopcoder.config.schema import Config
from loopcoder.errors import Problem, counted

_DEFAULT = ObjectiveConfig()


def check_objective(config: Config) -> Iterator[Problem]:
    """Yield what of the objective this model cannot be trained on."""
    objective, loops = config.objective, config.model.num_loops
    yield from _weights(objective, loops)
    yield from _exit(objective, loops)
    yield from _count(objective, loops)
    yield from _without_effect(objective)


def unbounded_states(config: Config) -> str | None:
    """Return a warning where losses by loop are read through a norm that the next loop does not
    get."""
    objective = config.objective
    if config.model.norm_per_loop or not (objective.loop_weights or objective.exit):
        return None
    return (
        "warning: model.norm_per_loop=false with losses of several loops: they see what a loop "
        "returns through the final norm, which bounds nothing of what the next loop reads; it may "
        "grow without limit (arXiv 2606.24898); logging.loop_gradients=true shows that"
    )


def _weights(objective: ObjectiveConfig, loops: int) -> Iterator[Problem]:
    weights = objective.loop_weights
    if weights is None:
        return
    fact = f"objective.loop_weights={as_override(weights)}"
    equal = f"objective.loop_weights={as_override([1] * loops)}, or objective.loop_weights=null"
    if len(weights) != loops:
        yield Problem(f"{fact} model.num_loops={loops}", "each loop has one weight", equal)
    elif not sum(weights):
        yield Problem(fact, "a mean needs a weight that is not 0", equal)
    elif objective.draws_loops and not sum(weights[: objective.min_loops]):
        least = next(r for r, weight in enumerate(weights, 1) if weight)
        yield Problem(
            f"{fact} objective.loop_count={objective.loop_count} "
            f"objective.min_loops={objective.min_loops}",
            f"a step of {counted(objective.min_loops, 'loop')} would have no loss: the first loop "
            f"with a weight is loop {least - 1}",
            f"objective.min_loops={least}, or objective.loop_count=fixed",
        )


def _exit(objective: ObjectiveConfig, loops: int) -> Iterator[Problem]:
    if not objective.exit:
        return
    if objective.loop_weights is not None:
        yield Problem(
            f"objective.exit=true objective.loop_weights={as_override(objective.loop_weights)}",
            "each of them weighs the losses of the loops: they exclude each other",
            "objective.loop_weights=null, or objective.exit=false",
        )
    if loops == 1:
        yield Problem(
            "objective.exit=true model.num_loops=1",
            "with one loop there is nothing to choose from",
            "model.num_loops=2, or objective.exit=false",
        )


def _count(objective: ObjectiveConfig, loops: int) -> Iterator[Problem]:
    if not objective.draws_loops:
        return
    kind, least = objective.loop_count, objective.min_loops
    if loops == 1:
        yield Problem(
            f"objective.loop_count={kind} model.num_loops=1",
            "model.num_loops is the most that is drawn: one loop leaves nothing to draw",
            "model.num_loops=2, or objective.loop_count=fixed",
        )
    elif least > loops:
        yield Problem(
            f"objective.min_loops={least} model.num_loops={loops}",
            "model.num_loops is the most that is drawn",
            f"objective.min_loops={loops - 1}, or model.num_loops={least}",
        )
    elif least == loops:
        yield Problem(
            f"objective.loop_count={kind} objective.min_loops={least} model.num_loops={loops}",
            "from a range of one number nothing is drawn",
            f"objective.min_loops={loops - 1}, or objective.loop_count=fixed",
        )
    if objective.mean_loops is not None and objective.mean_loops < 1:
        yield Problem(
            f"objective.mean_loops={objective.mean_loops:g}",
            "most steps would run one loop, and the others train little; the mean number of loops "
            "is 1 above it",
            "objective.mean_loops=1, or objective.mean_loops=null for model.num_loops - 1",
        )


def _without_effect(objective: ObjectiveConfig) -> Iterator[Problem]:
    """Fields that only count beside another one."""
    kind = objective.loop_count
    needs = {
        "exit_entropy": (objective.exit, "objective.exit=true"),
        "min_loops": (objective.draws_loops, "objective.loop_count=uniform"),
        "mean_loops": (kind == "poisson", "objective.loop_count=poisson"),
        "loop_sigma": (kind == "poisson", "objective.loop_count=poisson"),
    }
    for name, (counts, beside) in needs.items():
        value, default = getattr(objective, name), getattr(_DEFAULT, name)
        if value != default and not counts:
            yield Problem(
                f"objective.{name}={as_override(value)} objective.exit="
                f"{as_override(objective.exit)} objective.loop_count={kind}",
                f"it changes nothing without {beside}",
                f"{beside}, or objective.{name}={as_override(default)}",
            )
