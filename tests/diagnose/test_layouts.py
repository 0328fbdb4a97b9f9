"""Tensor, pipeline and data parallelism give the numbers of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loopcoder.data.corpus import Corpus, load_corpus
from tests.data.conftest import corpus, data
from tests.diagnose.models import SETTINGS, config_for, loaded
from tests.dist.launch import in_processes
from tests.parts import one_of

__all__ = ["corpus", "data"]  # fixtures

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": dict(tp=2),
    "pp2": dict(pp=2),
    "dp2": dict(),
}
MORE: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    # processes, model, parallel
    "pp2 two chunks": (2, dict(num_layers=5), dict(pp=2, chunks_per_loop=2)),
    "tp2 query gate": (2, dict(gate="query"), dict(tp=2)),
    "tp2 own": (2, dict(kv_sharing="own"), dict(tp=2)),
    "pp2 r1": (2, dict(num_loops=1), dict(pp=2)),
    "tp2 pp2": (4, dict(num_layers=3), dict(tp=2, pp=2)),
    "pp2 dp2": (4, dict(), dict(pp=2)),
}


def measured(
    rank: int,
    folder: Path,
    seq_length: int,
    model: dict[str, Any],
    weights: dict[str, torch.Tensor],
    layouts: list[dict[str, Any]],
) -> list[list[Any] | None]:
    """Diagnose a model in some layouts of the world that is running."""
    from loopcoder.diagnose.run import measure
    from loopcoder.parallel import mcore

    corpus, found = load_corpus(folder, "size"), list[Any]()
    for parallel in layouts:
        config = config_for(corpus, seq_length, model, **parallel)
        ranks = mcore.initialise(config.parallel, 1)
        run = loaded(config, config.model.num_loops, ranks, 0, weights=weights)
        diagnosis = measure(run, config, corpus, SETTINGS, "x", lambda _: None)
        assert (diagnosis is None) == (rank > 0)
        found.append(None if diagnosis is None else [diagnosis.series, diagnosis.exits])
    return found


def whole_weights(config: Any, ranks: Any, seed: int) -> dict[str, torch.Tensor]:
    from loopcoder.hf.mapping import plain_name

    network = loaded(config, config.model.num_loops, ranks, seed).model
    return {plain_name(n): p.detach().clone() for n, p in network.named_parameters()}


def compare(
    ranks: Any,
    corpus: Corpus,
    seq_length: int,
    seed: int,
    world: int,
    model: dict[str, Any],
    layouts: list[dict[str, Any]],
) -> None:
    from loopcoder.parallel import mcore

    alone = config_for(corpus, seq_length, model)
    weights = whole_weights(alone, ranks, seed)
    arguments = corpus.dir, seq_length, model, weights
    spread = in_processes(world, measured, *arguments, layouts)[0]
    (expected,) = measured(0, *arguments, [{}])
    mcore.initialise(replace(alone.parallel), 1)
    assert expected is not None
    for got in spread:
        assert len(got[0]) == len(expected[0]) and len(got[1]) == len(expected[1])
        for a, b in zip(got[0] + got[1], expected[0] + expected[1], strict=True):
            for x, y in zip(numbers(vars(a)), numbers(vars(b)), strict=True):
                assert x == (y if y is None or isinstance(y, str) else pytest.approx(y, 1e-6, 1e-9))


def numbers(value: Any) -> Iterator[Any]:
    """Yield everything in lists and mappings, one by one."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        yield value
        return
    for part in value:
        yield from numbers(part)


@pytest.mark.dist_full
def test_two_processes_equal_one(
    ranks: Any, corpus: Corpus, data: Callable[..., Any], seed: int
) -> None:
    layouts = list(LAYOUTS.values())
    compare(ranks, corpus, data().seq_length, seed, 2, dict(num_loops=2), layouts)


@pytest.mark.dist_full
@pytest.mark.parametrize("name", one_of(list(MORE)))
def test_more_layouts_equal_one_process(
    ranks: Any, corpus: Corpus, data: Callable[..., Any], seed: int, name: str
) -> None:
    world, model, parallel = MORE[name]
    compare(ranks, corpus, data().seq_length, seed, world, model, [parallel])
