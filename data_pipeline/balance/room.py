"""Are there tokens enough for the shards? If not, which field decides it?"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from loopcoder.config.check_build import least_tokens
from loopcoder.config.data import DataConfig
from loopcoder.config.fields import as_override
from loopcoder.config.mixture import MANY_PARTS
from loopcoder.errors import InputError, counted


def check_room(
    data: DataConfig,
    weights: dict[str, int],
    tokens: Mapping[str, int],
    num_shards: int,
    target_for: Callable[[Mapping[str, int], int], int | None],
) -> None:
    """Raise InputError if a shard would have no sequence of a domain.

    Args:
        data: Of the build.
        weights: Of the domains, in lowest terms.
        tokens: Of each domain.
        num_shards: Of each domain.
        target_for: Returns a data.build.target_tokens, not below the second argument, with which
            each domain has the tokens of the first; None: there is none.
    """
    needed = least_tokens(weights, data.seq_length, num_shards)
    if all(tokens[domain] >= needed[domain] for domain in weights):
        return
    raise InputError.of(
        f"{_spelled({d: tokens[d] for d in weights})} are the tokens for "
        f"{counted(num_shards, 'shard')} of each domain",
        f"with one sequence of {data.seq_length} in a shard and the mixture {as_override(weights)} "
        f"they need {_spelled(needed)}",
        ", or ".join(_fixes(data, weights, tokens, needed, target_for)),
    )


def _fixes(
    data: DataConfig,
    weights: dict[str, int],
    tokens: Mapping[str, int],
    needed: Mapping[str, int],
    target_for: Callable[[Mapping[str, int], int], int | None],
) -> list[str]:
    """Return what mends it, the field that was set for it first."""
    build = data.build
    one = least_tokens(weights, data.seq_length, 1)
    fitting = min(tokens[domain] // one[domain] for domain in weights)
    epochs = build.epochs.values() if isinstance(build.epochs, Mapping) else [build.epochs]
    fixes = []
    if fitting:
        fixes.append(f"data.build.shards={fitting}")
    if build.target_tokens is not None:
        enough = target_for(needed, max(4 * sum(needed.values()), 2 * build.target_tokens))
        fixes += [f"data.build.target_tokens={enough}"] if enough else []
    if min(epochs) < 1:
        fixes.append("a larger data.build.epochs")
    if sum(weights.values()) > MANY_PARTS:
        fixes.append("a plainer data.mixture")
    return [*fixes, "a shorter data.seq_length", "more documents"]


def _spelled(tokens: Mapping[str, int]) -> str:
    return " and ".join(f"{number:,} of {domain}" for domain, number in tokens.items())
