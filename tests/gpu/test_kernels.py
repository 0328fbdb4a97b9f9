"""The CUDA kernels against plain PyTorch in fp32 and in their own type. Needs a GPU."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from loopcoder.model.documents import Documents
from loopcoder.ops.gate_logits import gate_logits
from loopcoder.ops.gated_window import attention, gated_mixture
from loopcoder.ops.loop_input import loop_input
from tests.model.test_reference import random_starts

pytestmark = pytest.mark.gpu

DTYPES = [torch.bfloat16, torch.float16]
NAMES = ("out", "d_gate", "d_q", "d_k", "d_v", "d_k0", "d_v0")


@pytest.fixture(autouse=True)
def kernels() -> None:
    from loopcoder.ops import kernels

    kernels.load()
    torch.backends.cuda.matmul.allow_tf32 = False


def draw(
    rng: random.Random, dtype: torch.dtype, heads: tuple[int, int], seq: int, head_dim: int
) -> tuple[list[Tensor], Documents, int]:
    """Return gate, q, k, v, k0, v0, d_out, and where documents begin. Some are not contiguous."""
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    batch = rng.choice([1, 1, 2, 3])
    query_heads, kv_heads = heads
    sizes = [query_heads, *[kv_heads] * 4, query_heads]
    tensors = [
        torch.randn(seq, batch, n, head_dim + 8, generator=generator)[..., :head_dim] for n in sizes
    ]
    if rng.random() < 0.5:
        tensors = [x.contiguous() for x in tensors]
    gate = 2 * torch.randn(seq, batch, query_heads, generator=generator)
    on_gpu = [x.to("cuda", dtype) for x in (gate, *tensors)]
    if rng.random() < 0.3:
        docs = Documents.whole_rows(batch, seq, torch.device("cuda"))
    else:
        docs = Documents.packed(random_starts(generator, batch, seq).cuda())
    return on_gpu, docs, rng.choice([0, 1, 5, 16, 63, 64, 64, 64, 65, 100, 200, 256])


def stock(inputs: list[Tensor], docs: Documents, window: int) -> Tensor:
    gate, q, k, v, k0, v0 = inputs
    near = attention(q, k, v, docs.window_mask(window))
    return gated_mixture(gate, attention(q, k0, v0, docs.causal_mask), near)


def ours(inputs: list[Tensor], docs: Documents, window: int) -> Tensor:
    from loopcoder.ops.kernels import gated_attention

    gate, q, k, v, k0, v0 = inputs
    attend = functools.partial(attention, mask=docs.causal_mask)
    start = docs.start.contiguous() if docs.is_packed else None
    return gated_attention(attend, gate, q, k, v, (k0, v0), start, window)


def run(
    function: Any, tensors: list[Tensor], docs: Documents, window: int, dtype: torch.dtype
) -> list[Tensor]:
    *inputs, d_out = [x.detach().to(dtype) for x in tensors]
    inputs = [x.requires_grad_() for x in inputs]
    out = function(inputs, docs, window)
    out.backward(d_out)
    return [out.detach(), *(x.grad for x in inputs)]


def apart(found: Tensor, expected: Tensor) -> float:
    """Relative error; numbers are of the order of 1, so that one far below is rounding."""
    expected = expected.double()
    floor = 1e-2 * expected.numel() ** 0.5
    return ((found.double() - expected).norm() / expected.norm().clamp_min(floor)).item()


def check(rng: random.Random, dtype: torch.dtype, heads: tuple[int, int], seq: int, d: int) -> None:
    tensors, docs, window = draw(rng, dtype, heads, seq, d)
    expected = run(stock, tensors, docs, window, torch.float32)
    theirs = run(stock, tensors, docs, window, dtype)
    found = run(ours, tensors, docs, window, dtype)
    again = run(ours, tensors, docs, window, dtype)
    case = f"seq {seq}, batch {tensors[0].shape[1]}, heads {heads}, d {d}, window {window}, {dtype}"
    for name, e, t, f, a in zip(NAMES, expected, theirs, found, again, strict=True):
        assert f.isfinite().all(), (name, case)
        allowed = 2 * apart(t, e) + torch.finfo(dtype).eps
        assert apart(f, e) <= allowed, (name, apart(f, e), apart(t, e), case)
        if name in ("out", "d_gate", "d_k", "d_v"):  # the rest is the stock attention's as well
            assert torch.equal(f, a), (name, case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(1, 1), (8, 1), (40, 8), (6, 2)])
def test_gated_attention(seed: int, dtype: torch.dtype, heads: tuple[int, int]) -> None:
    rng = random.Random(seed)
    for seq in (1, 2, 17, 64, 129, rng.randrange(130, 700)):
        for d in (64, 128):
            check(rng, dtype, heads, seq, d)


def test_1000_random_shapes(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(1000):
        kv_heads = rng.choice([1, 2, 3])
        heads = kv_heads * rng.choice([1, 2, 5]), kv_heads
        check(rng, rng.choice(DTYPES), heads, rng.randrange(1, 320), rng.choice([64, 128]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_sequences(seed: int, dtype: torch.dtype) -> None:
    """A block of the backward pass has several tiles here, and borders on the next block."""
    rng = random.Random(seed)
    for heads in ((8, 8), (6, 3)):
        check(rng, dtype, heads, rng.randrange(3000, 5000), 128)


@pytest.mark.parametrize("dtype", DTYPES)
def test_portable_backward(seed: int, dtype: torch.dtype) -> None:
    """What runs on other GPUs computes what Hopper's own kernel does."""
    rng, ops = random.Random(seed), torch.ops.loopcoder
    for _ in range(30):
        (gate, q, k, v, global_out, _, d_out), docs, _ = draw(
            rng, dtype, rng.choice([(1, 1), (5, 1), (6, 2)]), rng.randrange(1, 700), 128
        )
        global_out, d_q = torch.randn_like(q), torch.randn_like(q)
        start, window, scale = docs.start.contiguous(), rng.randrange(65), 128**-0.5
        _, lse = ops.gated_window_forward(q, k, v, gate, global_out, start, window, scale)
        _, dot = ops.gated_window_prepare(d_out, gate, global_out)
        results = []
        for portable in (False, True):
            sums = d_q.clone()
            inputs = (d_out, q, k, v, gate, dot, lse, start, window, scale, sums)
            results.append([sums, *ops.gated_window_backward(*inputs, portable)])
        for name, found, expected in zip(("q", "k", "v", "gate"), *results, strict=True):
            assert apart(found, expected) <= torch.finfo(dtype).eps, (name, q.shape, window)


def worst_row(found: Tensor, expected: Tensor) -> float:
    """Largest relative error of one head's row: one wrong key in a row is far above it, whatever
    the length. Rows far below 1 are compared with 1/10."""
    found, expected = found.float(), expected.float()
    error, size = (x.norm(dim=-1) for x in (found - expected, expected))
    floor = 0.1 * expected.shape[-1] ** 0.5
    return (error / size.clamp_min(floor)).max().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("seq", "batch", "kv_heads", "group"), [(20_000, 1, 1, 1), (1300, 33, 4, 2)]
)
def test_every_row_of_many_tiles(
    seed: int, dtype: torch.dtype, seq: int, batch: int, kv_heads: int, group: int
) -> None:
    """Hopper's kernel where a block has many tiles, so that its rings wrap: row by row what the
    portable kernels compute. The second case has a chain for every multiprocessor."""
    torch.manual_seed(seed)
    ops, scale, heads = torch.ops.loopcoder, 128**-0.5, group * kv_heads
    q, global_out, d_out, d_q = (
        torch.randn(seq, batch, heads, 128, device="cuda", dtype=dtype) for _ in range(4)
    )
    k, v = (torch.randn(seq, batch, kv_heads, 128, device="cuda", dtype=dtype) for _ in range(2))
    gate = torch.randn(seq, batch, heads, device="cuda", dtype=dtype)
    begins = torch.rand(batch, seq, device="cuda") < 0.01  # most windows cross a border of tiles
    start = torch.where(begins, torch.arange(seq, device="cuda"), 0).cummax(1).values
    _, lse = ops.gated_window_forward(q, k, v, gate, global_out, start, 64, scale)
    _, dot = ops.gated_window_prepare(d_out, gate, global_out)
    results = []
    for portable in (False, True):
        sums = d_q.clone()
        inputs = (d_out, q, k, v, gate, dot, lse, start, 64, scale, sums)
        results.append([sums, *ops.gated_window_backward(*inputs, portable)])
    *rows, d_gate = zip(*results, strict=True)
    for name, (found, expected) in zip(("q", "k", "v"), rows, strict=True):
        assert worst_row(found, expected) <= 8 * torch.finfo(dtype).eps, name
    assert apart(*d_gate) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_outside_is_not_touched(seed: int, dtype: torch.dtype) -> None:
    """Outputs of a tile that goes beyond the sequence; NaN in other rows must not leak in."""
    rng = random.Random(seed)
    (gate, q, k, v, _, _, d_out), _, _ = draw(rng, dtype, (4, 2), 83, 128)
    ops = torch.ops.loopcoder
    whole = torch.full((166, *q.shape[1:]), torch.nan, device="cuda", dtype=dtype)
    d_q, global_out = whole[:83], torch.randn_like(q)
    d_q.zero_()
    scale = 128**-0.5
    out, lse = ops.gated_window_forward(q, k, v, gate, global_out, None, 64, scale)
    prepared = ops.gated_window_prepare(d_out, gate, global_out)
    made = ops.gated_window_backward(d_out, q, k, v, gate, prepared[1], lse, None, 64, scale, d_q)
    assert all(x.isfinite().all() for x in (out, lse, d_q, *prepared, *made))
    assert whole[83:].isnan().all()


def window_inputs(seq: int = 70, batch: int = 2) -> tuple[list[Tensor], Tensor]:
    """Return q, k, v, gate, global_out for 4 over 2 heads of 64, and where documents begin."""
    shapes = [(seq, batch, n, 64) for n in (4, 2, 2)] + [(seq, batch, 4), (seq, batch, 4, 64)]
    tensors = [torch.randn(*s, device="cuda", dtype=torch.bfloat16) for s in shapes]
    return tensors, torch.zeros(batch, seq, dtype=torch.int64, device="cuda")


def test_every_operator_and_its_fake_agree(seed: int) -> None:
    """Shapes, strides and aliases, also of a gate that lies heads first."""
    from torch import library

    torch.manual_seed(seed)
    ops, tests = torch.ops.loopcoder, ("test_schema", "test_faketensor")
    (q, k, v, gate, global_out), start = window_inputs()
    gate = gate.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    forward = (q, k, v, gate, global_out, start, 64, 0.125)
    _, lse = ops.gated_window_forward(*forward)
    _, dot = ops.gated_window_prepare(q, gate, global_out)
    backward = (q, q, k, v, gate, dot, lse, start, 64, 0.125, torch.zeros_like(q))
    h, weight, d_logits = (
        torch.randn(*s, device="cuda", dtype=torch.bfloat16)
        for s in ((70, 2, 128), (5, 128), (70, 2, 5))
    )
    norm, bias = weight[0].clone(), weight[:, 0].clone()
    _, raw, rms = ops.gate_logits_forward(h, weight, bias, 1e-5)
    first = (torch.rand(2, 70, device="cuda") < 0.1).T
    before = h[:1].clone()
    for operator, arguments in (
        (ops.gated_window_forward, forward),
        (ops.gated_window_prepare, (q, gate, global_out)),
        (ops.gated_window_backward, backward),
        (ops.gate_logits_forward, (h, weight, bias, 1e-5)),
        (ops.gate_logits_backward, (d_logits, raw, rms, h, weight, weight, norm)),
        (ops.loop_input_forward, (h, h, before, first, 0.7, 0.1)),
        (ops.loop_input_forward, (h, h, None, first, 0.7, 0.1)),
        (ops.loop_input_backward, (h, first, 0.7, 0.1, True)),
        (ops.loop_input_backward, (h, first, 0.7, 0.1, False)),
    ):
        library.opcheck(operator.default, arguments, test_utils=tests)


def test_compiled_and_in_a_graph(seed: int) -> None:
    from torch import library

    (gate, q, k, v, _, _, d_out), docs, _ = draw(
        random.Random(seed), torch.bfloat16, (4, 2), 90, 64
    )
    global_out, start = torch.randn_like(q), docs.start.contiguous()
    inputs = [x.detach().requires_grad_() for x in (q, k, v, gate, global_out)]
    forward = torch.ops.loopcoder.gated_window_forward.default
    library.opcheck(forward, (*inputs, start, 64, 0.125))

    def window(*tensors: Tensor) -> Tensor:
        return 2.0 * forward(*tensors, start, 64, 0.125)[0]

    found = torch.autograd.grad(torch.compile(window, fullgraph=True)(*inputs), inputs, d_out)
    expected = torch.autograd.grad(window(*inputs), inputs, d_out)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = window(*[x.detach() for x in inputs])
    with torch.no_grad():
        inputs[0].add_(1.0)
    graph.replay()
    assert torch.equal(out, window(*inputs))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [1, 8, 40, 64, 65, 128])
def test_gate_logits(seed: int, dtype: torch.dtype, heads: int) -> None:
    from loopcoder.ops.kernels import GateLogits

    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    names = ("logits", "d_h", "d_norm", "d_weight", "d_bias")
    for rows in (1, 2, 63, 64, 65, *(rng.randrange(1, 3000) for _ in range(6))):
        batch, width = rng.choice([1, 2, 3]), 64 * rng.choice([1, 2, 3, 7, 20])
        h, d_logits, weight = (
            torch.randn(*shape, generator=generator)
            for shape in ((rows, batch, width), (rows, batch, heads), (heads, width))
        )
        h *= 0.1 + 3 * torch.rand(rows, batch, 1, generator=generator)
        norm = 0.5 + torch.rand(width, generator=generator)
        drawn = (h, norm, weight / width**0.5, torch.randn(heads, generator=generator))
        inputs = [x.to("cuda", dtype) for x in drawn]
        results = []
        for function, exact in (
            (gate_logits, torch.float32),
            (gate_logits, dtype),
            (GateLogits.apply, dtype),
            (GateLogits.apply, dtype),
        ):
            leaves = [x.detach().to(exact).requires_grad_() for x in inputs]
            out = function(*leaves, 1e-5)
            out.backward(d_logits.to("cuda", dtype).to(exact))
            results.append([out.detach(), *(x.grad for x in leaves)])
        case = f"rows {rows} x {batch}, width {width}, heads {heads}, {dtype}"
        for name, expected, theirs, found, again in zip(names, *results, strict=True):
            assert found.isfinite().all(), (name, case)
            assert torch.equal(found, again), (name, case)
            allowed = 2 * apart(theirs, expected) + torch.finfo(dtype).eps
            assert apart(found, expected) <= allowed, (name, case, apart(theirs, expected))


def test_gate_logits_compiled(seed: int) -> None:
    from loopcoder.ops.kernels import GateLogits

    torch.manual_seed(seed)
    shapes = ((90, 2, 128), (128,), (5, 128), (5,))
    h, *weights = (torch.randn(*s, device="cuda", dtype=torch.bfloat16) for s in shapes)
    inputs = [x.requires_grad_() for x in (h, *weights)]

    def logits(*tensors: Tensor) -> Tensor:
        return 2.0 * GateLogits.apply(*tensors, 1e-5)

    d_logits = torch.randn_like(logits(*inputs))
    found = torch.autograd.grad(torch.compile(logits, fullgraph=True)(*inputs), inputs, d_logits)
    expected = torch.autograd.grad(logits(*inputs), inputs, d_logits)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("split", [False, True])
def test_loop_input(seed: int, dtype: torch.dtype, split: bool) -> None:
    from loopcoder.ops.kernels import LoopInput

    rng, eps = random.Random(seed), torch.finfo(dtype).eps
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        seq, batch, width = rng.randrange(1, 90), rng.randrange(1, 4), 8 * rng.randrange(1, 40)
        tensors = torch.randn(3, seq, batch, width, generator=generator).to("cuda", dtype)
        before = torch.randn(1, batch, width, generator=generator).to("cuda", dtype)
        first = (torch.rand(batch, seq, generator=generator) < 0.2).cuda().T
        results = []
        for exact in (True, False):
            e, h, p = (x.float() if exact else x for x in (*tensors[:2], before))
            e, h, p = (x.detach().requires_grad_() for x in (e, h, p))
            if exact:
                out = loop_input(e, h, p if split else None, first, 0.707, 0.053)
            else:
                out = LoopInput.apply(e, h, p if split else None, first, 0.707, 0.053)
            out.backward(tensors[2].to(out.dtype))
            results.append([out, e.grad, h.grad, *([p.grad] if split else [])])
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found.float(), expected, rtol=eps, atol=1e-3 * eps)
