"""A model has the same export, byte for byte, whichever layout saved it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loopcoder.checkpoint.format import find
from loopcoder.hf.export import RECORD, export
from tests.checkpoint.states import state_at
from tests.conftest import fresh_seed
from tests.dist.launch import in_processes
from tests.dist.layouts import VOCAB, Case, build, in_layouts, random_weights
from tests.hf.folders import tokenizer
from tests.parts import one_of

LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    # by processes
    2: {"dp2": {}, "tp2 sp": dict(tp=2, sp=True), "pp2": dict(pp=2)},
    4: {"pp4": dict(pp=4), "tp2 sp pp2": dict(tp=2, sp=True, pp=2), "tp4": dict(tp=4)},
}


def save_in(_: int, cases: list[Case], folder: Path, seed: int) -> None:
    """Save each case with the same weights."""
    from loopcoder.checkpoint.save import Saver

    for case, config, ranks in in_layouts(cases):
        state = build(config, ranks, random_weights(case, ranks, seed))
        about = state_at(2, vocab_size=VOCAB, num_loops=config.model.num_loops)
        companions = [folder / "tokenizer.json"]
        saver = Saver(config, folder / case.name, lambda *_, **__: None, companions)
        saver.save(state.network, state.ddp, state.optimizer, about)


def weights_in(folder: Path) -> dict[str, bytes]:
    """Return what an export has, but for what names its checkpoint."""
    done = export(find(folder), folder.with_name(f"export of {folder.name}"), shard_bytes=30_000)
    return {p.name: p.read_bytes() for p in done.folder.iterdir() if p.name != RECORD}


@pytest.mark.dist_full
@pytest.mark.parametrize("world", LAYOUTS)
@pytest.mark.parametrize("gate", one_of(["hidden", "query"]))
def test_any_layout_has_the_same_export(ranks: Any, tmp_path: Path, world: int, gate: str) -> None:
    seed = fresh_seed()
    tokenizer(tmp_path)
    model = dict(num_layers=4, num_kv_heads=4, gate=gate)
    save_in(0, [Case("one", model, {})], tmp_path, seed)
    cases = [Case(name, model, parallel) for name, parallel in LAYOUTS[world].items()]
    in_processes(world, save_in, cases, tmp_path, seed)
    one = weights_in(tmp_path / "one")
    assert sum(name.endswith(".safetensors") for name in one) > 3
    for case in cases:
        found = weights_in(tmp_path / case.name)
        assert found == one, (seed, case.name)
