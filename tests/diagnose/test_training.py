"""Diagnostics in training steps: what they are, in every layout, and that they change nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from loopcoder.config.types import Changes
from tests.configs import small_config
from tests.diagnose import naive
from tests.dist.launch import in_processes
from tests.dist.layouts import DOMAINS, VOCAB, global_batch, microbatches, scatter_weights
from tests.parts import one_of
from tests.weights import randomise

LENGTH = 80
LAYOUTS: dict[str, dict[str, Any]] = {
    "pp2": dict(pp=2),
    "tp2 sp recompute": dict(tp=2, sp=True, recompute="full"),
    "dp2": dict(),
    "pp2 two chunks": dict(pp=2, chunks_per_loop=2),
    "tp2": dict(tp=2),
}


def stepped(
    _: int, parallel: dict[str, Any], weights: dict[str, Any], seed: int, *, measures: bool = True
) -> dict[str, Any]:
    """Compute the gradients of a step in the layout of the world that is running."""
    from loopcoder.parallel import mcore
    from loopcoder.train.diagnostics import LoopDiagnostics
    from loopcoder.train.measures import Measures
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward

    config = small_config(dict(num_layers=4, num_loops=3), **parallel)
    config = replace(config, data=replace(config.data, seq_length=LENGTH))
    ranks = mcore.initialise(config.parallel, 1)
    state = build_state(config, ranks, VOCAB)
    scatter_weights(state.network, weights)
    ids = global_batch(seed, 0, config.train.global_batch_size, LENGTH)
    mine = microbatches(config, ids, True, ranks.dp_rank, ranks.dp_size)
    diagnostics = LoopDiagnostics(config, ranks) if measures else None
    sums = forward_backward(state, mine, DOMAINS, Measures(diagnostics=diagnostics))
    grads = {n: p.main_grad.clone() for n, p in state.network.named_parameters()}
    fields = diagnostics.fields() if diagnostics is not None else {}
    return {"fields": fields, "sums": sums, "grads": grads, "state": state, "batches": mine}


def drawn(seed: int) -> dict[str, torch.Tensor]:
    from loopcoder.config.schema import ParallelConfig
    from loopcoder.parallel import mcore
    from loopcoder.train.state import build_network

    ranks = mcore.initialise(ParallelConfig(), 1)
    network, _ = build_network(small_config(dict(num_layers=4, num_loops=3)), ranks, VOCAB)
    randomise(network, torch.Generator().manual_seed(seed))
    return {n: p.detach().clone() for n, p in network.named_parameters()}


def test_they_are_what_the_step_computed_and_change_nothing(ranks: Any, seed: int) -> None:
    weights = drawn(seed)
    plain = stepped(0, {}, weights, seed, measures=False)
    measured = stepped(0, {}, weights, seed)
    assert torch.equal(plain["sums"], measured["sums"])
    for name, gradient in measured["grads"].items():
        assert torch.equal(gradient, plain["grads"][name]), name

    found: dict[str, list[float]] = {}
    network, block = measured["state"].network, slice(LENGTH // 2, LENGTH // 2 + 32)
    for batch in measured["batches"]:
        seen = naive.Recorder()
        with torch.no_grad():
            network(batch.tokens, batch.documents, None, probe=seen)
        for row in range(len(batch.tokens)):
            add(found, seen, batch, row, block)
    expected = {name: sum(values) / len(values) for name, values in found.items()}
    assert measured["fields"].keys() == expected.keys()
    for name, value in expected.items():
        assert measured["fields"][name] == pytest.approx(value, rel=2e-4, abs=2e-5), name


def add(
    found: dict[str, list[float]], seen: naive.Recorder, batch: Any, row: int, block: slice
) -> None:
    """Add the values of a row's tokens."""
    assert seen.embedding is not None
    h = [x[:, row].double() for x in (seen.embedding, *seen.normed)]
    p = [x[:, row].double().softmax(-1) for x in seen.logits]

    def put(measure: str, r: int, value: torch.Tensor) -> None:
        found.setdefault(f"loops/{measure}/loop{r - 1}", []).append(float(value))

    for t in range(block.start, block.stop):
        if not batch.loss_mask[row, t]:
            continue
        for r in range(1, 4):
            step = h[r][t] - h[r - 1][t]
            put("step_size", r, step.norm())
            put("output_entropy", r, naive.entropy(p[r - 1][t]))
            if r == 1:
                continue
            former = h[r - 1][t] - h[r - 2][t]
            if step.any() and former.any():  # a document's first token may stand still
                put("alignment", r, step @ former / step.norm() / former.norm())
            put("output_shift", r, naive.kl(p[r - 1][t], p[r - 2][t]))
            if batch.document_start[row, t] != t and t > block.start:
                put("offset_cost", r, (h[r - 1][t] - h[r - 1][t - 1]).norm())
    for (loop_idx, _), (*_, gate) in seen.attention.items():
        if gate is not None:
            found.setdefault(f"loops/gate/loop{loop_idx}", []).extend(
                gate[:, row].flatten().tolist()
            )


@pytest.mark.dist_full
@pytest.mark.parametrize("name", one_of(list(LAYOUTS)))
def test_layouts_give_the_numbers_of_one_process(ranks: Any, seed: int, name: str) -> None:
    weights = drawn(seed)
    alone = stepped(0, {}, weights, seed)["fields"]
    for got in in_processes(2, fields_of, LAYOUTS[name], weights, seed):
        assert got.keys() == alone.keys()
        for field, value in alone.items():
            assert got[field] == pytest.approx(value, rel=1e-4, abs=1e-5), field


def fields_of(rank: int, *arguments: Any) -> dict[str, float]:
    return stepped(rank, *arguments)["fields"]


def test_they_are_taken_in_logged_steps_only() -> None:
    from loopcoder.config.schema import LoggingConfig
    from loopcoder.train.due import diagnoses_after

    config = small_config()
    for interval, expected in ((0, []), (4, [4, 8])):
        logging = LoggingConfig(interval=2, diagnostics_interval=interval)
        config = replace(
            config,
            logging=logging,
            train=replace(config.train, max_steps=9),
            eval=replace(config.eval, interval=None),
        )
        assert [s for s in range(1, 10) if diagnoses_after(config, s)] == expected
    info = LoggingConfig.__pydantic_fields__["diagnostics_interval"]  # type: ignore[attr-defined]
    assert Changes("nothing", since="2026-11-30") in info.metadata
