"""Values of `data.build` with which no corpus can be built, whatever the input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loopcoder.config.check_chat import check_chat
from loopcoder.config.data import DataConfig
from loopcoder.config.fields import as_override
from loopcoder.config.mixture import lowest_terms
from loopcoder.errors import Problem, counted

MOST_HELD_OUT = 0.9
"""Largest share of documents that may be held out; the rest is trained on."""
LEAST_WORKER_BYTES = 1000
_WHOLE_DOCUMENTS = 64
"""Times the least number of tokens that are proposed: documents are taken whole, of all languages,
so that of a few tokens' share many a domain has none."""


def check_build(data: DataConfig) -> Iterator[Problem]:
    """Yield what no corpus can be built with, before anything is read."""
    build = data.build
    if not build.sources:
        return
    yield from check_chat(data)
    for index, source in enumerate(build.sources):
        key = f"data.build.sources.{index}"
        if source.repository_field and not source.path_field:
            yield Problem(
                f"{key}.repository_field={source.repository_field} {key}.path_field=null",
                "files of a repository are put in the order of their paths, and named by them",
                f"{key}.path_field=COLUMN",
            )
    if build.val_fraction > MOST_HELD_OUT:
        yield Problem(
            f"data.build.val_fraction={build.val_fraction:g}",
            f"the documents that are not held out are trained on, at least {1 - MOST_HELD_OUT:.0%}",
            "data.build.val_fraction=0.02",
        )
    if build.worker_bytes < LEAST_WORKER_BYTES:
        yield Problem(
            f"data.build.worker_bytes={build.worker_bytes}",
            f"a shard takes half of it, so that there would be one for every few words; "
            f"{LEAST_WORKER_BYTES:,} is the least",
            "data.build.worker_bytes=1000000000",
        )
    weights = lowest_terms(data.mixture) if data.mixture else {}
    shards = build.shards or 1
    least = sum(least_tokens(weights, data.seq_length, shards).values())
    if build.target_tokens is not None and build.target_tokens < least:
        yield Problem(
            f"data.build.target_tokens={build.target_tokens}",
            f"{counted(shards, 'shard')} of each domain with one sequence of {data.seq_length} and "
            f"the mixture {as_override(weights)} take {least:,} tokens",
            "data.build.target_tokens=null for all that there is, or "
            f"{_WHOLE_DOCUMENTS * least} or more",
        )


def least_tokens(weights: Mapping[str, int], seq_length: int, shards: int) -> dict[str, int]:
    """Return the tokens of each domain without which a shard has no sequence of it.

    Args:
        weights: Of the domains, in lowest terms.
        seq_length: Tokens of a sequence; one more is its last target.
        shards: Of each domain.
    """
    return {domain: shards * (seq_length * weight + 1) for domain, weight in weights.items()}
