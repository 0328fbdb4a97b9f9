"""A checkpoint without an exit gate loads into a model that has one, and the other way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loopcoder.config.objective import ObjectiveConfig
from loopcoder.config.schema import Config
from tests.checkpoint.states import state_at
from tests.configs import small_config
from tests.dist.layouts import VOCAB
from tests.dist.test_checkpoints import steps


def moments(state: Any, kind: str) -> dict[str, torch.Tensor]:
    """Return a moment of every parameter of fp32 by its name, without a distributed optimizer."""
    inner = getattr(state.optimizer, "chained_optimizers", [state.optimizer])
    kept = {p: s[kind] for one in inner for p, s in one.optimizer.state.items()}
    return {n: kept[p] for n, p in state.network.named_parameters()}


@pytest.mark.parametrize("before", [False, True])
def test_it_is_created_and_dropped(ranks: Any, seed: int, tmp_path: Path, before: bool) -> None:
    from loopcoder.checkpoint.format import find
    from loopcoder.checkpoint.load import load
    from loopcoder.checkpoint.save import Saver
    from loopcoder.parallel import mcore
    from loopcoder.train.state import build_state

    def config_of(has_exit: bool) -> Config:
        config = small_config(distributed_optimizer=False)
        return replace(config, objective=ObjectiveConfig(exit=has_exit))

    config, other = config_of(before), config_of(not before)
    layout = mcore.initialise(config.parallel, 1)
    saved = build_state(config, layout, VOCAB)
    steps(config, saved, range(2), seed)
    about = state_at(2, vocab_size=VOCAB, num_loops=config.model.num_loops)
    saver = Saver(config, tmp_path, lambda *_, **__: None)
    saver.save(saved.network, saved.ddp, saved.optimizer, about)
    for into in (config, other):
        loaded = build_state(into, layout, VOCAB)
        load(find(tmp_path), loaded.network, loaded.optimizer, into)
        ours, theirs = (dict(s.network.named_parameters()) for s in (loaded, saved))
        gate = {"exit_gate.weight", "exit_gate.bias"}
        assert ours.keys() ^ theirs.keys() == (gate if into is other else set())
        for kind in ("exp_avg", "exp_avg_sq"):
            found, expected = moments(loaded, kind), moments(saved, kind)
            for name, x in found.items():
                if name in theirs:
                    assert torch.equal(ours[name], theirs[name]), name
                    assert torch.equal(x, expected[name]), name
                else:
                    assert not x.any() and not ours[name].any(), name
        if before and into is config:  # it has learned something
            assert all(ours[name].any() for name in gate)
