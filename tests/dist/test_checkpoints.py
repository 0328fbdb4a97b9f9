"""A checkpoint saved in any layout continues in any other, also with another number of loops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loopcoder.checkpoint.digest import read_digest
from loopcoder.checkpoint.format import find
from tests.checkpoint.states import state_at
from tests.configs import small_config
from tests.dist.launch import in_processes
from tests.dist.layouts import (
    DOMAINS,
    VOCAB,
    Case,
    build,
    global_batch,
    in_layouts,
    microbatches,
    random_weights,
    whole_weights,
)

LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    # by processes
    1: {"one": {}},
    2: {"dp2": {}, "tp2 sp": dict(tp=2, sp=True), "pp2": dict(pp=2)},
    4: {"pp4": dict(pp=4), "tp2 sp pp2": dict(tp=2, sp=True, pp=2), "dp2 pp2": dict(pp=2)},
}
LAYERS = {2: 3, 4: 6}


@dataclass(frozen=True)
class Load:
    """A checkpoint, named like the case that saved it, and the case that loads it."""

    source: str
    target: Case
    with_optimizer: bool = True


def cases(layouts: int, layers: int, loops: int = 2) -> list[Case]:
    """Return the model in all layouts of some number of processes."""
    model = dict(num_layers=layers, num_loops=loops)
    return [Case(f"{name} r{loops}", model, p) for name, p in LAYOUTS[layouts].items()]


def steps(config: Any, state: Any, which: range, seed: int) -> list[float]:
    """Train some steps and return their losses."""
    from loopcoder.optim.optimizer import update
    from loopcoder.train.step import forward_backward

    losses = []
    for step in which:
        ids = global_batch(seed, step, config.train.global_batch_size, config.data.seq_length)
        mine = microbatches(config, ids, True, state.ranks.dp_rank, state.ranks.dp_size)
        sums = forward_backward(state, mine, DOMAINS)
        losses.append((sums[0].sum() / sums[1].sum()).item())
        update(state.optimizer, config.optim, config.optim.lr, sums[1].sum())
    return losses


def save_in(_: int, cases: list[Case], folder: Path, seed: int) -> dict[str, Any]:
    """Train each case for two steps and save it; return its weights, and the losses of two more."""
    from loopcoder.checkpoint.save import Saver

    out = {}
    for case, config, ranks in in_layouts(cases):
        state = build(config, ranks, random_weights(case, ranks, seed))
        steps(config, state, range(2), seed)
        about = state_at(2, vocab_size=VOCAB, num_loops=config.model.num_loops)
        saver = Saver(config, folder / case.name, lambda *_, **__: None)
        saver.save(state.network, state.ddp, state.optimizer, about)
        weights = {n: x.numpy() for n, x in whole_weights(state).items()}
        out[case.name] = weights, steps(config, state, range(2, 4), seed)
    return out


def load_in(_: int, loads: list[Load], folder: Path, seed: int) -> dict[tuple[str, str], Any]:
    """Return the losses of the third and fourth step after each load, by source and target.

    The fourth depends on the third's update, and so on the optimizer's state.
    """
    from loopcoder.checkpoint.format import find
    from loopcoder.checkpoint.load import load
    from loopcoder.train.state import build_state

    out = {}
    layouts = in_layouts([plan.target for plan in loads])
    for plan, (case, config, ranks) in zip(loads, layouts, strict=True):
        state = build_state(config, ranks, VOCAB)
        optimizer = state.optimizer if plan.with_optimizer else None
        load(find(folder / plan.source), state.network, optimizer, config)
        if optimizer is None:
            state.optimizer.reload_model_params()
        out[plan.source, case.name] = steps(config, state, range(2, 4), seed)
    return out


def move(
    rank: int, sources: list[Case], loads: list[Load], folder: Path, seed: int
) -> tuple[dict[str, Any], dict[tuple[str, str], Any]]:
    """Save, then load, in one world."""
    return save_in(rank, sources, folder, seed), load_in(rank, loads, folder, seed)


def loss_with(weights: dict[str, Any], case: Case, seed: int) -> float:
    """Return the loss of the third step in one process with given weights, where these have no
    gates with those of g = 0.5."""
    ((_, config, ranks),) = in_layouts([case])
    own = random_weights(case, ranks, seed)
    for name, x in own.items():
        if name in weights:
            x.copy_(torch.from_numpy(weights[name]))
        else:
            assert "plt_gate" in name
            x.fill_(1.0 if "norm" in name else 0.0)
    return steps(config, build(config, ranks, own), range(2, 3), seed)[0]


def agree(found: list[float], expected: list[float]) -> bool:
    return all(abs(a - b) <= 1e-5 * b for a, b in zip(found, expected, strict=True))


def check_other_loops(
    world: int, sources: list[str], changes: list[tuple[int, int, bool]], folder: Path, seed: int
) -> None:
    """Save in some layouts and load in all of `world` processes and in one.

    Args:
        changes: loops before, loops after, whether with the optimizer's state.
    """
    layers = LAYERS[world]

    def loads(layouts: int) -> list[Load]:
        return [
            Load(f"{source} r{before}", Case(f"{name} r{after}", model, parallel), with_optimizer)
            for name, parallel in LAYOUTS[layouts].items()
            for before, after, with_optimizer in changes
            for model in [dict(num_layers=layers, num_loops=after)]
            for source in sources
        ]

    befores = {before: None for before, _, _ in changes}
    saves = [c for r in befores for c in cases(world, layers, r)]
    saves = [case for case in saves if case.name.rsplit(" ", 1)[0] in sources]
    saved, found = in_processes(world, move, saves, loads(world), folder, seed)[0]
    alone = load_in(0, loads(1), folder, seed)
    for plan in loads(1):
        losses = alone[plan.source, plan.target.name]
        expected = loss_with(saved[plan.source][0], plan.target, seed)
        assert agree(losses[:1], [expected]), (plan, losses, expected)
    for plan in loads(world):
        losses = found[plan.source, plan.target.name]
        expected = alone[plan.source, f"one r{plan.target.model['num_loops']}"]
        assert agree(losses, expected), (plan, losses, expected)


@pytest.mark.dist_full
@pytest.mark.parametrize("world", [2, 4])
def test_any_layout_continues_any_other(ranks: Any, tmp_path: Path, seed: int, world: int) -> None:
    spread, (one,) = cases(world, LAYERS[world]), cases(1, LAYERS[world])
    saved = save_in(0, [one], tmp_path, seed)
    _, expected = saved[one.name]
    names = [case.name for case in (one, *spread)]
    loads = [Load(name, case) for case in spread for name in names]
    saved_spread, found = in_processes(world, move, spread, loads, tmp_path, seed)[0]
    found |= load_in(0, [Load(name, one) for name in names], tmp_path, seed)
    for name, (_, losses) in (saved | saved_spread).items():
        assert agree(losses, expected), (name, losses, expected)
    assert len(found) == len(names) ** 2 == 16
    # every load has compared what each layout has then with the digest of what was saved
    digests = [read_digest(find(tmp_path / name)) for name in names]
    assert all(d is not None and d.keys() == (digests[0] or {}).keys() for d in digests)
    for pair, losses in found.items():
        assert agree(losses, expected), (pair, losses, expected)


CHANGES = [(2, 1, True), (2, 3, True), (1, 2, True), (1, 2, False)]


@pytest.mark.dist_full
@pytest.mark.parametrize("world", [2, 4])
def test_another_number_of_loops_from_any_layout(
    ranks: Any, tmp_path: Path, seed: int, world: int
) -> None:
    check_other_loops(world, list(LAYOUTS[world]), CHANGES, tmp_path, seed)


@pytest.mark.dist
def test_what_another_number_of_loops_means_is_said(ranks: Any, tmp_path: Path, seed: int) -> None:
    from loopcoder.checkpoint.format import find
    from loopcoder.checkpoint.start import Start, check_fits
    from loopcoder.errors import InputError

    save_in(0, [*cases(1, 2, 1), *cases(1, 2, 2)], tmp_path, seed)
    corpus: Any = SimpleNamespace(tokenizer_hash="tokenizer", fingerprint="corpus")
    for before, after, said in ((1, 2, "warning"), (2, 1, "dropped"), (2, 3, None)):
        config = small_config(dict(num_loops=after))
        checkpoint = find(tmp_path / f"one r{before}")
        notes = check_fits(Start(checkpoint, resumes=False), config, VOCAB, corpus)
        assert bool(notes) == bool(said)
        assert all(said in note and "gates" in note for note in notes), notes
        with pytest.raises(InputError, match="num_loops"):
            check_fits(Start(checkpoint, resumes=True), config, VOCAB, corpus)
