"""A checkpoint saved in any layout continues in any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.configs import small_config
from tests.dist.launch import in_processes
from tests.dist.layouts import DOMAINS, VOCAB, global_batch, microbatches

MODEL = dict(num_layers=3)
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {},
    "tp2 sp": dict(tp=2, sp=True),
    "pp2": dict(pp=2),
}


def steps(config: Any, state: Any, ranks: Any, which: range, seed: int) -> float:
    """Train some steps and return the last loss."""
    from loopcoder.optim.optimizer import update
    from loopcoder.train.step import forward_backward

    loss = float("nan")
    for step in which:
        ids, _ = global_batch(seed, step, config.train.global_batch_size, 32, True)
        mine = microbatches(config, ids, True, ranks.dp_rank, ranks.dp_size)
        sums = forward_backward(state, mine, DOMAINS)
        loss = (sums[0].sum() / sums[1].sum()).item()
        update(state.optimizer, config.optim, config.optim.lr, step + 1)
    return loss


def save_in(_: int, layouts: dict[str, dict[str, Any]], folder: Path, seed: int) -> dict[str, float]:
    """Train two steps in each layout, save, and return the loss of the third step."""
    from loopcoder.checkpoint.save import Saver
    from loopcoder.parallel import mcore
    from loopcoder.train.state import build_state

    out = {}
    for name, parallel in layouts.items():
        config = small_config(MODEL, **parallel)
        ranks = mcore.initialise(config.parallel, 1)
        state = build_state(config, ranks, VOCAB)
        steps(config, state, ranks, range(2), seed)
        saver = Saver(config, folder / name, lambda *_, **__: None)
        saver.save(state.network, state.ddp, state.optimizer, {"step": 2})
        out[name] = steps(config, state, ranks, range(2, 3), seed)
    return out


def load_in(
    _: int, layouts: dict[str, dict[str, Any]], saved: list[str], folder: Path, seed: int
) -> dict[tuple[str, str], float]:
    """Load every checkpoint in every layout and return the loss of the third step."""
    from loopcoder.checkpoint.format import find
    from loopcoder.checkpoint.load import load
    from loopcoder.parallel import mcore
    from loopcoder.train.state import build_state

    out = {}
    for name, parallel in layouts.items():
        config = small_config(MODEL, **parallel)
        ranks = mcore.initialise(config.parallel, 1)
        for source in saved:
            state = build_state(config, ranks, VOCAB)
            load(find(folder / source), state.network, state.optimizer, config)
            # the update of the third step counts too: it needs the optimizer's state
            steps(config, state, ranks, range(2, 3), seed)
            out[source, name] = steps(config, state, ranks, range(3, 4), seed)
    return out


@pytest.mark.dist
def test_any_layout_continues_any_other(ranks: Any, tmp_path: Path, seed: int) -> None:
    third = in_processes(2, save_in, LAYOUTS, tmp_path, seed)[0]
    alone = save_in(0, {"one": {}}, tmp_path, seed)["one"]
    assert all(abs(loss - alone) <= 1e-5 * alone for loss in third.values()), (third, alone)
    saved = ["one", *LAYOUTS]
    fourth = in_processes(2, load_in, LAYOUTS, saved, tmp_path, seed)[0]
    fourth |= load_in(0, {"one": {}}, saved, tmp_path, seed)
    expected = fourth["one", "one"]
    assert len(fourth) == 16
    for pair, loss in fourth.items():
        assert abs(loss - expected) <= 1e-5 * expected, (pair, loss, expected)
