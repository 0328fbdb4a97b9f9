"""Continuations are those of one process in every layout."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from tests.dist.launch import in_processes
from tests.dist.layouts import (
    OVERLAPS,
    VOCAB,
    Case,
    build,
    fresh_seed,
    in_layouts,
    random_weights,
)
from tests.train.continuations import check_greedy

TOKENS, EOD, NEW = VOCAB - 9, 7, 10
THREE = dict(num_loops=3)
CASES = [
    Case("tp2", parallel=dict(tp=2)),
    Case("tp2 sp r3", THREE, dict(tp=2, sp=True)),
    Case("dp2 overlaps", parallel=OVERLAPS),
    Case("pp2 r1", dict(num_loops=1), dict(pp=2)),
    Case("pp2 uneven r3", THREE | dict(num_layers=5), dict(pp=2)),
    Case("pp2 two chunks", dict(num_layers=5), dict(pp=2, chunks_per_loop=2)),
]


def prompts_of(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(TOKENS) for _ in range(rng.randint(1, 17))] for _ in range(3)]


def continue_all(_: int, cases: list[Case]) -> list[list[list[int]]]:
    from loopcoder.config.check_precision import sequence_multiple
    from loopcoder.train.generation import continued

    out = []
    for case, config, ranks in in_layouts(cases):
        state = build(config, ranks, random_weights(case, ranks, case.seed))
        state.network.eval()
        found = continued(
            state,
            prompts_of(case.seed),
            NEW,
            lambda logits: logits.argmax(-1),
            eod=EOD,
            vocab_size=TOKENS,
            multiple=sequence_multiple(config),
        )
        out.append(found)
    return out


@pytest.mark.dist_full
def test_layouts_continue_as_one_process_does(ranks: Any) -> None:
    seed = fresh_seed()
    cases = [replace(case, seed=seed) for case in CASES]
    first, second = in_processes(2, continue_all, cases)
    assert first == second
    for (case, config, alone), found in zip(
        in_layouts([case.alone() for case in cases]), first, strict=True
    ):
        state = build(config, alone, random_weights(case, alone, seed))
        print(case.name)
        for prompt, ids in zip(prompts_of(seed), found, strict=True):
            check_greedy(state, prompt, ids, NEW, EOD, TOKENS)
