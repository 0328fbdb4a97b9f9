"""What plain PyTorch runs with a backward pass of its own: against what autograd makes of the
formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loopcoder.ops.cross_entropy import cross_entropy
from loopcoder.ops.rms_norm import rms_norm
from loopcoder.ops.rotary import rotated_heads
from loopcoder.ops.swiglu import swiglu

SEQ, BATCH, GROUPS, HEADS, DIM, EPS = 5, 3, 2, 3, 8, 1e-3

Function = Callable[..., Tensor | tuple[Tensor, ...]]


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def assert_same(
    ours: Function, formula: Function, inputs: list[Tensor], generator: torch.Generator
) -> None:
    """Compare outputs and, for random gradients of them, the gradients of all inputs."""
    found = []
    upstream: list[Tensor] = []
    for function in (ours, formula):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(*leaves)
        outputs = (out,) if isinstance(out, Tensor) else out
        upstream = upstream or [draw(generator, *x.shape) for x in outputs]
        found.append([*outputs, *torch.autograd.grad(outputs, leaves, upstream)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_rms_norm(generator: torch.Generator) -> None:
    inputs = [draw(generator, SEQ, BATCH, DIM), draw(generator, DIM)]
    inputs[0][0, 0] = 0.0  # only eps is left

    def formula(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (DIM,), weight, EPS)

    assert_same(lambda x, weight: rms_norm(x, weight, EPS), formula, inputs, generator)


def test_rms_norm_in_fp32_is_as_exact_as_that_of_torch(generator: torch.Generator) -> None:
    x, weight = draw(generator, 64, DIM) * 100, draw(generator, DIM)
    exact = F.rms_norm(x, (DIM,), weight, EPS)
    x, weight = x.float(), weight.float()
    error, theirs = (
        (y.double() - exact).abs().max()
        for y in (rms_norm(x, weight, EPS), F.rms_norm(x, (DIM,), weight, EPS))
    )
    assert error <= 2 * theirs + torch.finfo(torch.float32).eps


def test_swiglu(generator: torch.Generator) -> None:
    def formula(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    assert_same(swiglu, formula, [draw(generator, SEQ, BATCH, 2 * DIM)], generator)


@pytest.mark.parametrize("rows", [1, BATCH], ids=["one_document", "packed"])
def test_rotated_heads(generator: torch.Generator, rows: int) -> None:
    half = draw(generator, SEQ, rows, 1, DIM // 2)
    angles = torch.cat([half, half], -1)
    rope = torch.stack([angles.cos(), angles.sin()])

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    def formula(projected: Tensor) -> tuple[Tensor, ...]:
        q, k, v = projected.split((HEADS, 1, 1), -2)
        return turned(q.flatten(2, 3)), turned(k.flatten(2, 3)), v.flatten(2, 3)

    projected = draw(generator, SEQ, BATCH, GROUPS, HEADS + 2, DIM)
    assert_same(lambda x: rotated_heads(x, rope), formula, [projected], generator)


def test_cross_entropy(generator: torch.Generator) -> None:
    logits = 3 * draw(generator, SEQ, BATCH, DIM)
    labels = torch.randint(DIM, (SEQ, BATCH), generator=generator)

    def formula(x: Tensor) -> Tensor:
        return F.cross_entropy(x.flatten(0, 1), labels.flatten(), reduction="none").view(SEQ, BATCH)

    assert_same(lambda x: cross_entropy(x, labels), formula, [logits], generator)


def test_cross_entropy_of_16_bits_is_that_of_fp32(generator: torch.Generator) -> None:
    logits = draw(generator, SEQ, BATCH, DIM).bfloat16()
    labels = torch.randint(DIM, (SEQ, BATCH), generator=generator)
    loss = cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cross_entropy(logits.float(), labels))
