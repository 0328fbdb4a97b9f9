"""The kernels for decoding, emulated on the CPU: against the formulas in float64, on random shapes,
strides and lengths, with threads in random order."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.decode_emulated import DecodeKernels

pytestmark = pytest.mark.compile


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> DecodeKernels:
    return DecodeKernels(tmp_path_factory.mktemp("decode"), random.Random())


@pytest.fixture
def kernels(built: DecodeKernels, seed: int) -> DecodeKernels:
    built.rng.seed(seed)
    torch.manual_seed(seed)
    return built


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape)).bfloat16()


@pytest.mark.parametrize("rows", range(1, 9))
def test_products(rng: random.Random, kernels: DecodeKernels, rows: int) -> None:
    # on 5 multiprocessors: fewer tiles, as many, more; x in one part and in several
    for width in (
        8,
        264,
        520,
        rng.choice([5120, 27648]),
        8 * (42 * 64 // rows + rng.randrange(1, 200)),
    ):
        columns = rng.choice([3, 8, 40, 45, 83])
        swiglu, to_float, normed = (rng.random() < 0.5 for _ in range(3))
        x = draw(rows, 2 * width)[:, rng.choice([0, width]) :][:, :width]
        weight = draw(columns * (1 + swiglu), width, scale=width**-0.5)
        norm = draw(width) if normed else None
        added = rng.choice([None, draw(rows, columns), draw(columns).expand(rows, columns)])
        found = kernels.linear(
            x, weight, norm=norm, eps=1e-5, swiglu=swiglu, added=added, to_float=to_float
        )
        exact = (
            x.double() if norm is None else F.rms_norm(x.double(), (width,), norm.double(), 1e-5)
        )
        expected = exact @ weight.double().T
        if swiglu:
            gate, up = expected.chunk(2, -1)
            expected = F.silu(gate) * up
        if added is not None:
            expected = expected + added.double()
        # in bf16 the normed x is rounded, and the result
        rtol, atol = (8e-3, 2e-2) if normed or not to_float else (1e-5, 1e-5)
        case = f"{rows, columns, width, swiglu, to_float, normed, added is not None}"
        torch.testing.assert_close(
            found.double(), expected, rtol=rtol, atol=atol, msg=lambda m, case=case: f"{case}: {m}"
        )


class Case:
    """Random inputs of one token."""

    def __init__(self, rng: random.Random, head_dim: int):
        self.d, self.loops, ring_tokens = head_dim, rng.randrange(1, 5), rng.choice([5, 65])
        kv_heads, self.group = rng.choice([1, 2]), rng.choice([1, 4, 5, 18])
        batch, places, tokens = rng.choice([1, 3]), 5, rng.choice([40, 200])
        self.shape = batch, self.loops, kv_heads * self.group, head_dim
        self.places = torch.randperm(places)[:batch]
        self.positions = torch.randint(0, tokens, (batch,))
        self.positions[0] = rng.choice([0, 1, 4, 15, 16, 17, tokens - 1])
        self.kept = (
            draw(places, kv_heads, tokens, head_dim),
            draw(places, kv_heads, tokens, head_dim),
        )
        k, v = (draw(places, 4, kv_heads, ring_tokens, head_dim) for _ in range(2))
        self.rings = k[:, : self.loops - 1], v[:, : self.loops - 1]
        self.q = draw(*self.shape)
        self.gate = draw(batch, 5, self.shape[2])[:, 5 - (self.loops - 1) :]

    def expected(self) -> Tensor:
        """The formula, query by query."""
        out = torch.empty(self.shape, dtype=torch.double)
        for b, (place, position) in enumerate(zip(self.places, self.positions, strict=True)):
            for loop in range(self.loops):
                for head in range(self.shape[2]):
                    q, kv_head = self.q[b, loop, head].double(), head // self.group

                    def attend(
                        k: Tensor, v: Tensor, q: Tensor = q, seen: int = int(position) + 1
                    ) -> Tensor:
                        k, v = k[:seen].double(), v[:seen].double()
                        return torch.softmax(k @ q / self.d**0.5, 0) @ v

                    mixed = attend(*(x[place, kv_head] for x in self.kept))
                    if loop > 0:
                        near = attend(*(x[place, loop - 1, kv_head] for x in self.rings))
                        g = torch.sigmoid(self.gate[b, loop - 1, head].double())
                        mixed = g * mixed + (1 - g) * near
                    out[b, loop, head] = mixed
        return out


@pytest.mark.parametrize("head_dim", [64, 128])
def test_attention(rng: random.Random, kernels: DecodeKernels, head_dim: int) -> None:
    for _ in range(12):
        case, kernels.splits = Case(rng, head_dim), rng.choice([1, 3, 7, 40])
        found = kernels.attention(
            case.q, case.kept, case.rings, case.places, case.positions, case.gate
        )
        torch.testing.assert_close(found.double(), case.expected(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_rotation_keeps_keys_and_values(
    rng: random.Random, kernels: DecodeKernels, head_dim: int
) -> None:
    for _ in range(12):
        case = Case(rng, head_dim)
        batch, kv_heads = case.shape[0], case.kept[0].shape[1]
        expected = [[x.clone() for x in both] for both in (case.kept, case.rings)]
        qkv = draw(batch, case.loops, kv_heads, case.group + 2, head_dim)
        angle = 10 * torch.rand(batch, head_dim // 2).repeat(1, 2)
        cos, sin = angle.cos(), angle.sin()
        q = kernels.rotate(
            qkv.flatten(2), cos, sin, case.kept, case.rings, case.places, case.positions
        )

        low, high = qkv.float().chunk(2, -1)
        wide = (slice(None), None, None, None)
        turned = qkv.float() * cos[wide] + torch.cat([-high, low], -1) * sin[wide]
        turned = turned.bfloat16()
        turned[:, :, :, -1] = qkv[:, :, :, -1]  # v
        close = dict(rtol=8e-3, atol=1e-3)
        torch.testing.assert_close(q, turned[:, :, :, :-2].flatten(2, 3), **close)
        for b, (place, position) in enumerate(zip(case.places, case.positions, strict=True)):
            for which in (0, 1):
                new, (kept, ring) = turned[b, :, :, which - 2], [x[which] for x in expected]
                kept[place, :, position] = new[0]
                ring[place, :, :, position % ring.shape[-2]] = new[1:]
        for found, them in zip((case.kept, case.rings), expected, strict=True):
            torch.testing.assert_close(list(found), them, **close)


def test_nothing_is_read_that_is_not_there(kernels: DecodeKernels) -> None:
    """NaN in other places, in tokens that are to come, and beyond the rows of a weight."""
    case, kernels.splits = Case(kernels.rng, 64), 3
    for both in (case.kept, case.rings):
        for x in both:
            seen = torch.arange(x.shape[-2])[:, None] <= case.positions.max()
            unused = torch.ones(len(x), dtype=torch.bool)
            unused[case.places] = False
            x[unused] = math.nan
            x.masked_fill_(~seen, math.nan)
    found = kernels.attention(case.q, case.kept, case.rings, case.places, case.positions, case.gate)
    assert found.isfinite().all()
    weight = torch.full((4, 3, 24), math.nan).bfloat16()
    weight[1] = draw(3, 24)
    assert kernels.linear(draw(2, 24), weight[1]).isfinite().all()
