"""Each rank saves and loads its part of the optimizer's state, in megatron-core's own format."""

from __future__ import annotations

import random
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from loopcoder.checkpoint.digest import digest_of, read_digest
from loopcoder.checkpoint.format import find
from loopcoder.checkpoint.optimizer_parts import rectangles
from tests.checkpoint.states import state_at
from tests.dist.launch import in_processes
from tests.dist.layouts import VOCAB, Case, build, in_layouts, random_weights
from tests.dist.test_checkpoints import steps

CASES = [
    Case("dp2", dict(num_layers=3), {}),
    Case("dp2, one more loop", dict(num_layers=2, num_loops=3), {}),
    Case("tp2 sp", dict(num_layers=3), dict(tp=2, sp=True)),
]


def test_rectangles_are_the_range_in_order(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(300):
        shape = tuple(draw.randint(1, 6) for _ in range(draw.randint(1, 4)))
        begin, end = sorted(draw.randint(0, prod(shape)) for _ in range(2))
        whole = torch.arange(prod(shape)).view(shape)
        found = list(rectangles(begin, end, shape))
        parts = [
            whole[tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))].reshape(-1)
            for at, size in found
        ]
        assert torch.cat([torch.empty(0).long(), *parts]).tolist() == list(range(begin, end))
        if len(shape) <= 2:
            assert len(found) <= 3


def exchanged(_: int, folder: Path, seed: int) -> dict[str, Any]:
    """Save by parts and as megatron-core does, each loaded by the other; return digests."""
    from loopcoder.checkpoint import save as module
    from loopcoder.checkpoint.load import load
    from loopcoder.train.state import build_state

    ours = module.save_by_parts
    out: dict[str, Any] = {}
    for case, config, ranks in in_layouts(CASES):
        for name, saves, loads in (("ours", ours, _as_it_is), ("theirs", _as_it_is, ours)):
            module.save_by_parts = saves
            state = build(config, ranks, random_weights(case, ranks, seed))
            steps(config, state, range(2), seed)
            about = state_at(2, vocab_size=VOCAB, num_loops=config.model.num_loops)
            where = folder / f"{case.name} {name}"
            module.Saver(config, where, lambda *_, **__: None).save(
                state.network, state.ddp, state.optimizer, about
            )
            module.save_by_parts = loads
            other = build_state(config, ranks, VOCAB)
            load(find(where), other.network, other.optimizer, config)  # compares digests
            shards = module.sharded_state(other.network, other.optimizer, is_loading=False)
            out[f"{case.name} {name}"] = digest_of(shards, other.optimizer)
    return out


def _as_it_is(_: Any) -> None:
    """Leave megatron-core's optimizer as it is."""


@pytest.mark.dist_full
def test_either_reads_what_the_other_wrote(tmp_path: Path, seed: int) -> None:
    found, again = in_processes(2, exchanged, tmp_path, seed)
    assert found == again
    for case in CASES:
        ours, theirs = found[f"{case.name} ours"], found[f"{case.name} theirs"]
        assert ours == theirs
        saved = read_digest(find(tmp_path / f"{case.name} ours"))
        assert saved is not None
        assert {k: v for k, v in saved.items() if k in ours} == ours
        files = list(find(tmp_path / f"{case.name} ours").path.glob("__1_*.distcp"))
        assert files, "rank 1 has written nothing"
