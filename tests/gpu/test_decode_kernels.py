"""The kernels for decoding against plain PyTorch, in float64 and in bf16. Needs a GPU."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, library

from loopcoder.infer.attention import decode_attention
from loopcoder.infer.layers import Rope, head
from loopcoder.ops import decode

pytestmark = pytest.mark.gpu

BF16 = torch.bfloat16
SHAPES_7B = [(7168, 5120), (5120, 5120), (55296, 5120), (5120, 27648), (76800, 5120)]


@pytest.fixture(autouse=True)
def kernels(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from loopcoder.ops import kernels

    kernels.load()
    monkeypatch.setattr(decode, "MAX_ROWS", 8)  # all that the kernel takes
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = False


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape, device="cuda")).to(BF16)


def apart(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


def compare(found: Tensor, plain: Callable[..., Tensor], *tensors: Tensor | None) -> None:
    """At most twice the error of the same by PyTorch in bf16, and a rounding."""
    exact = plain(*(None if x is None else x.double() for x in tensors))
    theirs = apart(plain(*tensors), exact)
    assert found.isfinite().all()
    assert apart(found, exact) <= 2 * theirs + torch.finfo(BF16).eps / 4, (theirs, found.shape)


def product(
    x: Tensor, weight: Tensor, norm: Tensor | None, added: Tensor | None, swiglu: bool
) -> Tensor:
    if norm is not None:
        x = F.rms_norm(x, norm.shape, norm, 1e-5)
    out = F.linear(x, weight)
    if swiglu:
        gate, up = out.chunk(2, -1)
        out = F.silu(gate) * up
    return out if added is None else out + added


@pytest.mark.parametrize("shape", SHAPES_7B, ids=str)
def test_products_of_the_7b_model(rng: random.Random, shape: tuple[int, int]) -> None:
    weight = draw(*shape, scale=shape[1] ** -0.5)
    for rows in (1, 2, 3, 4, 8, 9):
        x, swiglu = draw(rows, shape[1]), shape[0] == 55296
        norm = rng.choice([None, draw(shape[1])])
        added = None if swiglu else rng.choice([None, draw(rows, shape[0])])
        torch.cuda.synchronize()  # as weights are not waited for
        found = decode.linear(x, weight, norm=norm, eps=1e-5, swiglu=swiglu, added=added)
        assert torch.equal(
            found, decode.linear(x, weight, norm=norm, eps=1e-5, swiglu=swiglu, added=added)
        )
        compare(found, lambda *t, s=swiglu: product(*t, s), x, weight, norm, added)


def test_1000_random_products(rng: random.Random) -> None:
    for _ in range(1000):
        rows, columns, width = (
            rng.randrange(1, 9),
            rng.randrange(16, 3000),
            8 * rng.randrange(1, 900),
        )
        swiglu, to_float = rng.random() < 0.3, rng.random() < 0.5
        x = draw(rows, 2 * width)[:, rng.choice([0, width]) :][:, :width]
        weight = draw(columns * (1 + swiglu), width, scale=width**-0.5)
        norm = rng.choice([None, draw(width)])
        added = rng.choice([None, draw(rows, columns), draw(columns).expand(rows, columns)])
        torch.cuda.synchronize()  # as weights are not waited for
        found = decode.linear(
            x, weight, norm=norm, eps=1e-5, swiglu=swiglu, added=added, to_float=to_float
        )
        assert found.dtype == (torch.float32 if to_float else BF16)
        compare(found, lambda *t, s=swiglu: product(*t, s), x, weight, norm, added)


def caches(
    rng: random.Random, loops: int, kv_heads: int, head_dim: int, length: int
) -> dict[str, Any]:
    batch, places = rng.choice([1, 1, 3, 7]), 8
    ring = (places, 4, kv_heads, 65, head_dim)
    k, v = draw(*ring), draw(*ring)
    index = torch.randperm(places, device="cuda")[:batch]
    positions = torch.randint(0, length, (batch,), device="cuda")
    positions[0] = rng.choice([0, 1, 63, 64, 65, length - 1]) % length
    return {
        "kept": tuple(draw(places, kv_heads, length, head_dim) for _ in range(2)),
        "rings": (k[:, : loops - 1], v[:, : loops - 1]) if loops > 1 else None,
        "places": index,
        "positions": positions,
    }


@pytest.mark.parametrize("head_dim", decode.HEAD_DIMS)
@pytest.mark.parametrize("loops", [1, 2, 3, 4])
def test_attention(rng: random.Random, loops: int, head_dim: int) -> None:
    for heads, length in itertools.product(
        ((40, 8), (8, 1), (20, 1), (3, 3)), (1, 70, 2048, rng.randrange(1, 9000))
    ):
        given = caches(rng, loops, heads[1], head_dim, length)
        batch = len(given["places"])
        q, gates = draw(batch, loops, heads[0], head_dim), draw(batch, loops, heads[0])[:, 1:]
        found = decode.attention(q, **given, gates=gates if loops > 1 else None)
        rings = given["rings"] or (None, None)
        places, lengths = given["places"], given["positions"] + 1

        def plain(*tensors: Any, places: Tensor = places, lengths: Tensor = lengths) -> Tensor:
            q, k, v, ring_k, ring_v, gates = tensors
            return decode_attention(q, k, v, ring_k, ring_v, places, lengths, gates)

        compare(found, plain, q, *given["kept"], *rings, gates if loops > 1 else None)


@pytest.mark.parametrize("head_dim", decode.HEAD_DIMS)
@pytest.mark.parametrize("loops", [1, 2, 4])
def test_rotation_keeps_keys_and_values(rng: random.Random, loops: int, head_dim: int) -> None:
    given = caches(rng, loops, 2, head_dim, 100)
    places, positions = given["places"], given["positions"]
    qkv = draw(len(places), loops, 2, 5 + 2, head_dim)
    angle = (10 * torch.rand(len(places), head_dim // 2, device="cuda")).repeat(1, 2)
    before = [x.clone() for x in (*given["kept"], *(given["rings"] or ()))]
    q = decode.rotate(qkv.flatten(2), angle.cos(), angle.sin(), **given)
    rope = Rope(angle.cos()[:, None, None], angle.sin()[:, None, None])
    # products and sums may be rounded together or apart
    close: dict[str, float] = dict(rtol=8e-3, atol=1e-3)
    torch.testing.assert_close(q, rope.rotate(qkv[:, :, :, :5].flatten(2, 3)), **close)
    k, v = rope.rotate(qkv[:, :, :, 5]), qkv[:, :, :, 6]
    for i, new in enumerate((k, v)):
        before[i][places, :, positions] = new[:, 0]
        if loops > 1:
            before[2 + i][places, :, :, positions % 65] = new[:, 1:]
    for found, expected in zip((*given["kept"], *(given["rings"] or ())), before, strict=True):
        torch.testing.assert_close(found, expected, **close)


def test_a_chain_of_kernels_in_a_graph_waits_for_each(rng: random.Random) -> None:
    """Each begins before the one in front has ended; 200 in a row give what single calls give,
    with and without other kernels between them."""
    weights = [draw(1024, 1024, scale=1024**-0.5) for _ in range(8)]
    norm = draw(1024)

    def chain(x: Tensor, synchronises: bool) -> Tensor:
        for i in range(200):
            x = decode.linear(x, weights[i % 8], norm=norm, eps=1e-5, added=x)
            if i % 7 == 0:
                x = x * 0.5
            if synchronises:
                torch.cuda.synchronize()
        return x

    x = draw(2, 1024)
    expected = chain(x, synchronises=True)
    assert torch.equal(chain(x, synchronises=False), expected)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        chain(x, synchronises=False)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain(x, synchronises=False)
    for _ in range(20):
        graph.replay()
        assert torch.equal(out, expected)


def test_every_operator_and_its_fake_agree(rng: random.Random) -> None:
    given = caches(rng, 2, 2, 64, 100)
    batch, ops = len(given["places"]), torch.ops.loopcoder
    kept = (*given["kept"], *given["rings"], given["places"], given["positions"])
    angle = torch.rand(batch, 64, device="cuda")
    q, gate = draw(batch, 2, 6, 64), draw(batch, 1, 6)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (ops.decode_linear, (draw(2, 64), draw(8, 64), None, 0.0, True, None, True)),
        (ops.decode_rotate, (draw(batch, 2, 10 * 64), angle, angle, *kept)),
        (ops.decode_attention, (q, *kept, gate, 0.125)),
    ]
    for operator, arguments in calls:
        library.opcheck(operator.default, arguments, test_utils=("test_schema", "test_faketensor"))


def refusals() -> list[tuple[str, Callable[[], Any]]]:
    x, w = draw(2, 64), draw(8, 64)
    one = torch.zeros(1, dtype=torch.int64, device="cuda")
    kept = draw(2, 1, 10, 64), draw(2, 1, 10, 64)
    ops = torch.ops.loopcoder

    def attend(q: Tensor, rings: Any = None, gates: Any = None, places: Tensor = one) -> Tensor:
        return decode.attention(q, kept, rings, places, one, gates)

    return [
        ("not bf16", lambda: ops.decode_linear(x.half(), w.half(), None, 0, False, None, False)),
        ("rows", lambda: ops.decode_linear(draw(9, 64), w, None, 0, False, None, False)),
        ("multiple of 8", lambda: decode.linear(draw(1, 60), draw(8, 60))),
        ("shape", lambda: decode.linear(x, draw(8, 72))),
        ("rows", lambda: decode.linear(x, draw(7, 64), swiglu=True)),
        ("added", lambda: decode.linear(x, w, added=draw(1, 8))),
        ("norm", lambda: decode.linear(x, w, norm=draw(8))),
        ("head_dim", lambda: decode.attention(draw(1, 1, 1, 96), (draw(2, 1, 10, 96),) * 2, None,
                                              one, one, None)),
        ("rings", lambda: attend(draw(1, 2, 1, 64))),
        ("int64", lambda: attend(draw(1, 1, 1, 64), places=one.int())),
        ("need a GPU|CPU", lambda: attend(draw(1, 1, 1, 64), places=one.cpu())),
    ]  # fmt: skip


def test_what_does_not_fit_is_refused() -> None:
    for says, call in refusals():
        with pytest.raises((RuntimeError, NotImplementedError), match=says):
            call()


@pytest.mark.parametrize("rows", [1, 8, 9, 300])
def test_a_head_in_fp32_is_never_rounded_to_bf16(rows: int) -> None:
    x, weight = draw(rows, 512), draw(3000, 512, scale=512**-0.5)
    exact = x.double() @ weight.double().T
    for found in (decode.linear(x, weight, to_float=True), head(x, weight)):
        assert found.dtype == torch.float32 and apart(found, exact) < 1e-5
