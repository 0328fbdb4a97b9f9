"""How steps become graphs, with a stand-in for those of CUDA."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from loopcoder.infer.graphs import StepGraphs
from tests.infer.models import draw, random_ids


class Captured:
    """Calls instead of graphs; like CUDA's, the first runs leave what `undo` does not undo, and
    each writes over the logits of the one before."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, run: Callable[[], Tensor], undo: Callable[[], None]) -> Callable[[], Tensor]:
        self.made += 1
        for _ in range(2):
            run()
            undo()
        out = torch.empty_like(run())
        undo()

        def replay() -> Tensor:
            return out.copy_(run())

        return replay


@pytest.mark.parametrize("shift", [True, False])
def test_steps_as_graphs_are_the_steps(seed: int, rng: random.Random, shift: bool) -> None:
    """Also of rows that no graph has as many of, and of longer and longer sequences."""
    drawn = draw(seed, num_loops=3, shift=shift)
    plain, graphed = (drawn.decoder(5, 600) for _ in range(2))
    capture = Captured()
    graphed._graphs = StepGraphs(graphed._cache, capture=capture)
    prompts = {i: random_ids(rng, length) for i, length in enumerate((1, 20, 250, 255, 510))}
    for decoder in (plain, graphed):
        decoder.prefill(prompts)
    kept: list[tuple[Tensor, Tensor]] = []
    for step in range(14):
        places = rng.sample(range(5), 1 + step % 5)
        tokens = random_ids(rng, len(places))
        kept.append((graphed.step(places, tokens), plain.step(places, tokens)))
    for found, expected in kept:  # at the end: no step may write over what another one gave
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert graphed.lengths == plain.lengths == graphed._cache.lengths.tolist()
    assert graphed._graphs.sizes == [1, 2, 4, 5] and graphed._graphs.seen == [256, 512, 600]
    assert 4 <= capture.made <= 10


def test_places_that_are_not_stepped_stay_as_they_are(seed: int, rng: random.Random) -> None:
    decoder = draw(seed).decoder(4, 30)
    decoder._graphs = StepGraphs(decoder._cache, capture=Captured())
    decoder.prefill({i: random_ids(rng, 5 + i) for i in range(4)})
    cache = decoder._cache
    before = [x.clone() for x in (*cache.full, *cache.ring)]
    decoder.step([2, 0, 3], random_ids(rng, 3))
    for old, new in zip(before, (*cache.full, *cache.ring), strict=True):
        changed = (old != new).flatten(2).any(-1) if old.ndim == 5 else (old != new)
        places = 2 if old.shape[2] == 4 else 1
        assert not (old != new).select(places, 1).any() and changed.any()


def test_a_step_that_always_sees_all_has_one_graph_for_all_lengths(
    seed: int, rng: random.Random
) -> None:
    decoder, capture = draw(seed).decoder(2, 600), Captured()
    decoder._graphs = StepGraphs(decoder._cache, sees_all=True, capture=capture)
    for length in (1, 255, 256, 511, 598):
        decoder.prefill({0: random_ids(rng, length)})
        decoder.step([0], random_ids(rng, 1))
    assert capture.made == 1
