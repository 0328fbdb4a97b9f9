"""Every layer is run once, by stages of even size; microbatches fill a pipeline."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopcoder.parallel.layout import microbatch_group, stage_layers

ANY_TIME = settings(deadline=None)  # the machine may be busy


@ANY_TIME
@given(st.integers(1, 100), st.integers(1, 9), st.integers(1, 5))
def test_a_loop_runs_every_layer_once_and_in_order(layers: int, pp: int, chunks: int) -> None:
    stages = [stage_layers(layers, pp, chunks, stage) for stage in range(pp)]
    assert all(len(stage) == chunks for stage in stages)
    pieces = [stages[stage][part] for part in range(chunks) for stage in range(pp)]
    assert [layer for piece in pieces for layer in piece] == list(range(layers))


@ANY_TIME
@given(st.integers(1, 100), st.integers(1, 9), st.integers(1, 5))
def test_pieces_differ_by_one_layer_and_the_last_are_smaller(
    layers: int, pp: int, chunks: int
) -> None:
    stages = [stage_layers(layers, pp, chunks, stage) for stage in range(pp)]
    sizes = [len(stages[stage][part]) for part in range(chunks) for stage in range(pp)]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    totals = [sum(map(len, stage)) for stage in stages]
    assert totals == sorted(totals, reverse=True)
    assert max(totals) - min(totals) <= 1


def groups(microbatches: int, size: int) -> list[int]:
    """Return the sizes of the groups that microbatches run in."""
    left, out = microbatches, []
    while left > 0:
        out.append(min(size, left))
        left -= out[-1]
    return out


def test_no_group_is_smaller_than_the_pipeline() -> None:
    for pp in range(1, 13):
        for microbatches in range(pp, 100):
            fill = [
                size for size in range(1, microbatches + 1) if min(groups(microbatches, size)) >= pp
            ]
            assert microbatch_group(microbatches, pp) == min(fill), (microbatches, pp)


def test_fewer_microbatches_than_stages_are_refused() -> None:
    for pp in range(2, 13):
        for microbatches in range(pp):
            with pytest.raises(ValueError, match=f"{microbatches} microbatches cannot fill {pp} "):
                microbatch_group(microbatches, pp)
