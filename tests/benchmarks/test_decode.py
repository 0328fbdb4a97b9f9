"""Bytes that a token reads, against the numbers of the released model."""

from __future__ import annotations

import dataclasses

from loopcoder.config.compose import compose

PARAMETERS, EMBEDDING, GATES = 7_615_749_680, 76_800 * 5_120, 2_939_440
OF_A_TOKEN = 57_344
"""Bytes of the cache."""


def test_a_token_reads_all_weights_but_the_embedding_and_the_cache_once() -> None:
    from decode import CONTEXT, STEPS, bytes_of_a_step, random_weights

    model = compose(["model=plt_7b"]).model
    weights = random_weights(model, device="meta")
    tokens = CONTEXT + STEPS // 2
    for loops in (1, 2, 4):
        for batch in (1, 16):
            of_row = dataclasses.replace(model, num_loops=loops)
            rows = loops - 1
            kept = batch * (OF_A_TOKEN * (tokens + 65 * rows) + 2 * 5120 * rows + 8)
            read = 2 * (PARAMETERS - EMBEDDING - (GATES if loops == 1 else 0))
            assert bytes_of_a_step(weights, of_row, batch) == read + kept


def test_loops_in_turn_read_the_head_and_their_rings_once() -> None:
    from decode import CONTEXT, STEPS, bytes_of_a_step, random_weights

    model = dataclasses.replace(compose(["model=plt_7b"]).model, num_loops=3, shift=False)
    found = bytes_of_a_step(random_weights(model, device="meta"), model, 4, in_turn=True)
    head = 2 * EMBEDDING  # it is as large
    layers = 2 * PARAMETERS - 2 * head
    once = head + 4 * (OF_A_TOKEN * 65 * 2 + 8)
    assert found == once + 3 * (layers + 4 * OF_A_TOKEN * (CONTEXT + STEPS // 2))
