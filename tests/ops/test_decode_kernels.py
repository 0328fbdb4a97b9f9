"""The kernels for decoding, emulated on the CPU: against the formulas in float64, on random shapes,
strides and lengths, with threads in random order."""

from __future__ import annotations

import ctypes
import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops import emulated

pytestmark = pytest.mark.compile

GEMV = """
extern "C" int gemv(unsigned seed, int rows, int columns, int width, void* x, int64_t x_row,
                    void* weight, void* norm, float eps, int swiglu, void* added, int64_t added_row,
                    int is_float, void* out) {
  emulated::chance.seed(seed);
  return loopcoder::decode_gemv({rows, columns, width, x, weight, x_row, norm, eps, swiglu != 0,
                                 added, added_row, is_float != 0, out}, nullptr);
}
"""
ATTENTION = """
extern "C" int run(unsigned seed, loopcoder::DecodeAttention* args, int rotates) {
  emulated::chance.seed(seed);
  return rotates ? loopcoder::decode_rotate(*args, nullptr)
                 : loopcoder::decode_attention(*args, nullptr);
}
"""


@pytest.fixture(scope="module")
def gemv(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return emulated.build("decode_gemv.cu", GEMV, tmp_path_factory.mktemp("gemv"))


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("attention")
    return emulated.build("decode_attention.cu", ATTENTION, folder)


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape)).bfloat16()


@pytest.mark.parametrize("rows", range(1, 9))
def test_products(seed: int, gemv: ctypes.CDLL, rows: int) -> None:
    rng = random.Random(seed + rows)
    torch.manual_seed(rng.getrandbits(60))
    # with 5 multiprocessors: fewer tiles, as many, more; x in one part and in several
    for width in (8, 264, 520, 4096, 8 * (42 * 64 // rows + rng.randrange(1, 200))):
        columns = rng.choice([3, 8, 40, 45, 83])
        swiglu, is_float, normed = (rng.random() < 0.5 for _ in range(3))
        x = draw(rows, 2 * width)[:, rng.choice([0, width]) :][:, :width]
        weight = draw(columns * (1 + swiglu), width, scale=width**-0.5)
        norm = draw(width) if normed else None
        added = rng.choice([None, draw(rows, columns), draw(columns).expand(rows, columns)])
        out = torch.full((rows, columns), math.nan, dtype=torch.float if is_float else x.dtype)
        exact = x.double()
        if norm is not None:
            exact = F.rms_norm(exact, (width,), norm.double(), 1e-5)
        expected = exact @ weight.double().T
        if swiglu:
            gate, up = expected.chunk(2, -1)
            expected = F.silu(gate) * up
        if added is not None:
            expected = expected + added.double()
        failed = gemv.gemv(
            ctypes.c_uint(rng.getrandbits(32)),
            rows,
            columns,
            width,
            pointer(x),
            ctypes.c_int64(x.stride(0)),
            pointer(weight),
            pointer(norm),
            ctypes.c_float(1e-5),
            int(swiglu),
            pointer(added),
            ctypes.c_int64(added.stride(0) if added is not None else 0),
            int(is_float),
            pointer(out),
        )
        case = (rows, columns, width, swiglu, is_float, normed, added is not None)
        assert failed == 0, case
        # in bf16 the normed x is rounded, and the result
        rounds = normed or not is_float
        torch.testing.assert_close(
            out.double(), expected, rtol=8e-3 if rounds else 1e-5, atol=2e-2 if rounds else 1e-5
        )


class Kept(ctypes.Structure):
    _fields_ = (
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("place", ctypes.c_int64),
        ("loop", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("tokens", ctypes.c_int),
    )


class Arguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("batch", "loops", "heads", "kv_heads", "head_dim")),
        ("splits", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("all", Kept),
        ("ring", Kept),
        *((name, ctypes.c_void_p) for name in ("places", "positions", "qkv", "cos", "sin")),
        *((name, ctypes.c_void_p) for name in ("q", "gate")),
        ("gate_batch", ctypes.c_int64),
        ("gate_loop", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("sums", "stats", "out")),
    )


class Case:
    """Random inputs of one token."""

    def __init__(self, rng: random.Random, head_dim: int):
        torch.manual_seed(rng.getrandbits(60))
        self.d, self.loops, self.ring_tokens = head_dim, rng.randrange(1, 5), rng.choice([5, 65])
        self.kv_heads, self.group = rng.choice([1, 2]), rng.choice([1, 4, 5, 18])
        self.batch, places, self.tokens = rng.choice([1, 3]), 5, rng.choice([40, 200])
        self.splits = rng.choice([1, 3, 7])
        self.heads = self.kv_heads * self.group
        self.places = torch.randperm(places)[: self.batch]
        self.positions = torch.randint(0, self.tokens, (self.batch,))
        self.positions[0] = rng.choice([0, 1, 4, 15, 16, 17, self.tokens - 1])
        self.k, self.v = (draw(places, self.kv_heads, self.tokens, head_dim) for _ in range(2))
        rings = (places, 4, self.kv_heads, self.ring_tokens, head_dim)
        self.ring_k, self.ring_v = (draw(*rings)[:, : self.loops - 1] for _ in range(2))
        self.q = draw(self.batch, self.loops, self.heads, head_dim)
        self.gate = draw(self.batch, 5, self.heads)[:, 5 - (self.loops - 1) :]
        self.out = torch.full_like(self.q, math.nan)

    def kept(self, k: Tensor, v: Tensor) -> Kept:
        loop = k.stride(1) if k.dim() == 5 else 0
        strides = (k.stride(0), loop, k.stride(-3))
        return Kept(k.data_ptr(), v.data_ptr(), *strides, k.shape[-2])

    def run(self, library: ctypes.CDLL, seed: int, rotates: bool, **more: Tensor) -> None:
        sums = torch.full((self.q.numel() * (self.splits + 1),), math.nan)
        stats = torch.full((sums.numel() // self.d * 2,), math.nan)
        tensors = {
            name: getattr(self, name) for name in ("places", "positions", "q", "gate", "out")
        } | {"sums": sums, "stats": stats, **more}
        arguments = Arguments(
            batch=self.batch,
            loops=self.loops,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.d,
            splits=self.splits,
            scale=self.d**-0.5,
            all=self.kept(self.k, self.v),
            ring=self.kept(self.ring_k, self.ring_v),
            gate_batch=self.gate.stride(0),
            gate_loop=self.gate.stride(1),
            **{name: x.data_ptr() for name, x in tensors.items()},
        )
        assert library.run(ctypes.c_uint(seed), ctypes.byref(arguments), int(rotates)) == 0

    def expected(self) -> Tensor:
        out = torch.empty_like(self.q, dtype=torch.double)
        for b, (place, position) in enumerate(zip(self.places, self.positions, strict=True)):
            for loop in range(self.loops):
                for head in range(self.heads):
                    q, kv_head = self.q[b, loop, head].double(), head // self.group

                    def attend(
                        k: Tensor, v: Tensor, q: Tensor = q, seen: int = int(position) + 1
                    ) -> Tensor:
                        k, v = k[:seen].double(), v[:seen].double()
                        return torch.softmax(k @ q / self.d**0.5, 0) @ v

                    far = attend(self.k[place, kv_head], self.v[place, kv_head])
                    if loop > 0:
                        ring = (place, loop - 1, kv_head)
                        near = attend(self.ring_k[ring], self.ring_v[ring])
                        g = torch.sigmoid(self.gate[b, loop - 1, head].double())
                        far = g * far + (1 - g) * near
                    out[b, loop, head] = far
        return out


@pytest.mark.parametrize("head_dim", [64, 128])
def test_attention(seed: int, attention: ctypes.CDLL, head_dim: int) -> None:
    rng = random.Random(seed)
    for _ in range(12):
        case = Case(rng, head_dim)
        case.run(attention, rng.getrandbits(32), rotates=False)
        torch.testing.assert_close(case.out.double(), case.expected(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_rotation_keeps_keys_and_values(seed: int, attention: ctypes.CDLL, head_dim: int) -> None:
    rng = random.Random(seed)
    for _ in range(12):
        case = Case(rng, head_dim)
        before = [x.clone() for x in (case.k, case.v, case.ring_k, case.ring_v)]
        qkv = draw(case.batch, case.loops, case.kv_heads, case.group + 2, head_dim)
        angle = 10 * torch.rand(case.batch, head_dim // 2).repeat(1, 2)
        cos, sin = angle.cos(), angle.sin()
        case.run(attention, rng.getrandbits(32), rotates=True, qkv=qkv, cos=cos, sin=sin)

        x = qkv[:, :, :, :-1].float()
        low, high = x.chunk(2, -1)
        wide = (slice(None), None, None, None)
        turned = (x * cos[wide] + torch.cat([-high, low], -1) * sin[wide]).bfloat16()
        torch.testing.assert_close(case.q, turned[:, :, :, :-1].flatten(2, 3), rtol=8e-3, atol=1e-3)
        found = (case.k, case.v, case.ring_k, case.ring_v)
        for b, (place, position) in enumerate(zip(case.places, case.positions, strict=True)):
            slot = position % case.ring_tokens
            for new, all_, ring in (
                (turned[b, :, :, -1], before[0], before[2]),
                (qkv[b, :, :, -1], before[1], before[3]),
            ):
                all_[place, :, position] = new[0]
                ring[place, :, :, slot] = new[1:]
        for one, expected in zip(found, before, strict=True):
            torch.testing.assert_close(one, expected, rtol=8e-3, atol=1e-3)
