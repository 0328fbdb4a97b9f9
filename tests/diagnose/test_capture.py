"""What the model shows to a probe is what the equations compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import reference
from tests.configs import small_config
from tests.diagnose.naive import Recorder
from tests.dist.layouts import DOMAINS, VOCAB, batch_of, global_batch, microbatches
from tests.weights import named, randomise

MODELS = {
    "r3": dict(num_loops=3),
    "query gate": dict(gate="query", norm_per_loop=False),
    "own, no shift": dict(kv_sharing="own", shift=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_captured_tensors_equal_the_reference(ranks: Any, seed: int, name: str) -> None:
    from loopcoder.train.state import build_network

    config = small_config(MODELS[name])
    network, _ = build_network(config, ranks, VOCAB)
    randomise(network, torch.Generator().manual_seed(seed))
    weights = named(network, config.model)
    network.double()
    batch = batch_of(global_batch(seed, 0, 2, 32), torch.arange(2), isolate=True)
    seen = Recorder()
    with torch.no_grad():
        network(batch.tokens, batch.documents, None, probe=seen)
    for row in range(2):
        inputs: list[Tensor] = []
        outputs: list[tuple[Tensor, Tensor]] = []
        attended: dict[tuple[int, int], tuple[Tensor | None, ...]] = {}
        logits = reference.forward(
            weights,
            batch.tokens[row],
            batch.document_start[row],
            **reference.arguments(config.model),
            inputs=inputs,
            attended=attended,
            outputs=outputs,
        )
        pairs = [
            *zip(seen.inputs, inputs, strict=True),
            *zip(seen.raw, (raw for raw, _ in outputs), strict=True),
            *zip(seen.normed, (normed for _, normed in outputs), strict=True),
            *zip(seen.logits, logits, strict=True),
        ]
        assert seen.attention.keys() == attended.keys()
        for at, expected in attended.items():
            pairs += zip(seen.attention[at], expected, strict=True)  # type: ignore[arg-type]
        for got, wanted in pairs:
            assert (got is None) == (wanted is None)
            if got is not None:
                # the angles of the rotary embedding are in fp32
                error = (got[:, row] - wanted).abs().max() / wanted.abs().max()
                assert error < 2e-5, error


def test_what_is_recomputed_is_shown_once(ranks: Any, seed: int) -> None:
    from loopcoder.train.diagnostics import LoopDiagnostics
    from loopcoder.train.measures import Measures
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward

    class Counter(LoopDiagnostics):
        calls = 0

        def at_attention(self, *arguments: Any) -> None:
            self.calls += 1
            super().at_attention(*arguments)

    config = small_config(recompute="full")
    config = replace(config, data=replace(config.data, seq_length=32))
    state = build_state(config, ranks, VOCAB)
    counter = Counter(config, ranks)
    batches = microbatches(config, global_batch(seed, 0, 4, 32), True, 0, 1)
    forward_backward(state, batches, DOMAINS, Measures(diagnostics=counter))
    model = config.model
    assert counter.calls == len(batches) * model.num_loops * model.num_layers
    for layer in state.network.decoder.layers:
        assert layer.self_attention.observer is None  # type: ignore[union-attr]
