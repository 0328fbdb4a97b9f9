"""The plain PyTorch references: against the formula spelt out, and their gradients in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from loopcoder.model.documents import Documents
from loopcoder.ops.gate_logits import gate_logits
from loopcoder.ops.gated_window import attention, gated_mixture
from loopcoder.ops.loop_input import loop_input
from tests.model.test_reference import random_starts

SEQ, BATCH, HEADS, KV_HEADS, DIM, WINDOW = 7, 2, 4, 2, 3, 2


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def inputs(generator: torch.Generator) -> list[Tensor]:
    """Return gate, q, k, v, k0, v0."""
    kv = [draw(generator, SEQ, BATCH, KV_HEADS, DIM) for _ in range(4)]
    q = draw(generator, SEQ, BATCH, HEADS, DIM)
    return [draw(generator, SEQ, BATCH, HEADS), q, *kv]


def gated(docs: Documents, gate: Tensor, q: Tensor, *kv: Tensor) -> Tensor:
    k, v, k0, v0 = kv
    near = attention(q, k, v, docs.window_mask(WINDOW))
    return gated_mixture(gate, attention(q, k0, v0, docs.causal_mask), near)


@pytest.fixture
def docs(seed: int) -> Documents:
    return Documents.packed(random_starts(torch.Generator().manual_seed(seed), BATCH, SEQ))


def test_gated_window_is_the_formula(seed: int, docs: Documents) -> None:
    gate, q, k, v, k0, v0 = inputs(torch.Generator().manual_seed(seed))
    found = gated(docs, gate, q, k, v, k0, v0)
    for t in range(SEQ):
        for b in range(BATCH):
            first = int(docs.start[b, t])
            for h in range(HEADS):
                g = 1 / (1 + math.exp(-gate[t, b, h].item()))
                parts = []
                for keys, values, low in ((k0, v0, first), (k, v, max(first, t - WINDOW))):
                    near = slice(low, t + 1)
                    scores = keys[near, b, h // 2] @ q[t, b, h] / math.sqrt(DIM)
                    parts.append(torch.softmax(scores, 0) @ values[near, b, h // 2])
                torch.testing.assert_close(found[t, b, h], g * parts[0] + (1 - g) * parts[1])


def test_gradients_of_the_gated_window(seed: int, docs: Documents) -> None:
    tensors = inputs(torch.Generator().manual_seed(seed))
    assert torch.autograd.gradcheck(lambda *x: gated(docs, *x), tensors)


@pytest.mark.parametrize("split", [False, True])
def test_gradients_of_the_loop_input(seed: int, docs: Documents, split: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    e, h = (draw(generator, SEQ, BATCH, DIM) for _ in range(2))
    before = draw(generator, 1, BATCH, DIM) if split else None
    first = docs.first_token.clone()
    first[0] = ~torch.tensor([split] * BATCH)  # a part of a sequence may begin within a document

    def mix(*x: Tensor) -> Tensor:
        return loop_input(x[0], x[1], x[2] if split else None, first, 0.707, 0.053)

    assert torch.autograd.gradcheck(mix, (e, h, *([before] if split else [])))


def test_gate_logits_are_the_formula(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((SEQ, BATCH, DIM), (DIM,), (HEADS, DIM), (HEADS,))
    h, norm, weight, bias = (draw(generator, *shape) for shape in shapes)
    found = gate_logits(h, norm, weight, bias, 0.25)
    for t in range(SEQ):
        for b in range(BATCH):
            rms = math.sqrt(sum(x * x for x in h[t, b].tolist()) / DIM + 0.25)
            torch.testing.assert_close(found[t, b], weight @ (h[t, b] / rms * norm) + bias)
    assert torch.autograd.gradcheck(lambda *x: gate_logits(*x, 0.25), (h, norm, weight, bias))
