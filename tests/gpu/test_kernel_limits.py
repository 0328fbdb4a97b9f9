"""What the CUDA kernels refuse, and what they take at their limits. Needs a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loopcoder.model.documents import Documents
from tests.gpu.test_kernels import kernels, ours, window_inputs  # noqa: F401 - a fixture

pytestmark = pytest.mark.gpu


def misaligned(*shape: int) -> Tensor:
    """A contiguous tensor that starts 2 bytes after a multiple of 16."""
    numel = torch.Size(shape).numel()
    return torch.zeros(numel + 1, device="cuda", dtype=torch.bfloat16)[1:].view(shape)


def test_what_does_not_start_at_16_bytes_is_refused() -> None:
    ops = torch.ops.loopcoder
    x, w = (torch.zeros(*s, device="cuda", dtype=torch.bfloat16) for s in ((9, 1, 64), (3, 64)))
    first, bias = torch.zeros(9, 1, device="cuda", dtype=torch.bool), w[:, 0].clone()
    odd = misaligned(9, 1, 64)
    for call in (
        lambda: ops.loop_input_forward(odd, x, None, first, 0.7, 0.1),
        lambda: ops.loop_input_forward(x, odd, None, first, 0.7, 0.1),
        lambda: ops.loop_input_forward(x, x, misaligned(1, 1, 64), first, 0.7, 0.1),
        lambda: ops.loop_input_backward(odd, first, 0.7, 0.1, False),
        lambda: ops.gate_logits_forward(odd, w, bias, 1e-5),
        lambda: ops.gate_logits_forward(x, misaligned(3, 64), bias, 1e-5),
    ):
        with pytest.raises(RuntimeError, match="multiple of 16 bytes"):
            call()
    (q, k, v, gate, other), start = window_inputs()
    with pytest.raises(RuntimeError, match="multiples of 16 bytes"):
        ops.gated_window_forward(misaligned(*q.shape), k, v, gate, other, start, 64, 0.1)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_two_gpus_are_refused() -> None:
    ops = torch.ops.loopcoder
    inputs, start = window_inputs()
    for index in range(1, 5):
        moved = [x.to("cuda:1") if i == index else x for i, x in enumerate(inputs)]
        with pytest.raises(RuntimeError, match="is on cuda:1, not on cuda:0"):
            ops.gated_window_forward(*moved, start, 64, 0.125)
    with pytest.raises(RuntimeError, match="start is on cuda:1"):
        ops.gated_window_forward(*inputs, start.to("cuda:1"), 64, 0.125)
    h = torch.zeros(9, 1, 64, device="cuda", dtype=torch.bfloat16)
    first = torch.zeros(9, 1, device="cuda:1", dtype=torch.bool)
    with pytest.raises(RuntimeError, match="first_token is on cuda:1"):
        ops.loop_input_forward(h, h, None, first, 0.7, 0.1)


def test_strides_of_dimensions_of_size_1_do_not_matter() -> None:
    ops = torch.ops.loopcoder
    torch.manual_seed(1)
    q, other = (torch.randn(70, 1, 1, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    gate = torch.randn(70, 1, 1, device="cuda", dtype=torch.bfloat16)
    expected = ops.gated_window_forward(q, q, q, gate, other, None, 64, 0.125)
    odd = q.as_strided(q.shape, (64, 1, 3, 1))
    found = ops.gated_window_forward(odd, odd, odd, gate, other, None, 64, 0.125)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def test_a_sequence_that_is_too_long_is_named() -> None:
    q = torch.empty(4_194_304, 1, 1, 64, device="cuda", dtype=torch.bfloat16)
    gate = torch.empty(4_194_304, 1, 1, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="4194304 positions, the kernels take 4194240"):
        torch.ops.loopcoder.gated_window_forward(q, q, q, gate, q, None, 64, 0.125)


def test_gradients_of_nothing_are_zero() -> None:
    ops = torch.ops.loopcoder
    q = torch.empty(7, 1, 0, 64, device="cuda", dtype=torch.bfloat16)
    k = torch.randn(7, 1, 1, 64, device="cuda", dtype=torch.bfloat16)
    del_me = torch.full_like(k, torch.nan)
    del del_me  # its memory is what the allocator hands out next
    rows = torch.empty(1, 0, 7, device="cuda")
    d_k, d_v, _ = ops.gated_window_backward(
        q, q, k, k, q[..., 0], rows, rows, None, 64, 0.125, q.clone()
    )
    assert (d_k == 0).all() and (d_v == 0).all()
    x = torch.empty(0, 1, 64, device="cuda", dtype=torch.bfloat16)
    first = torch.empty(0, 1, device="cuda", dtype=torch.bool)
    assert (ops.loop_input_backward(x, first, 0.7, 0.1, True)[2] == 0).all()


def test_a_second_derivative_is_refused() -> None:
    from loopcoder.ops.kernels import GateLogits, LoopInput

    (q, k, v, gate, _), start = window_inputs()
    docs = Documents.packed(start)
    inputs = [x.requires_grad_() for x in (gate, q, k, v, k.clone(), v.clone())]
    out = ours(inputs, docs, 64)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out.sum(), q, create_graph=True)
    h, weight = (
        torch.randn(*s, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for s in ((9, 1, 64), (3, 64))
    )
    logits = GateLogits.apply(h, weight[0], weight, weight[:, 0].contiguous(), 1e-5)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(logits.sum(), h, create_graph=True)
    first = torch.zeros(9, 1, device="cuda", dtype=torch.bool)
    mixed = LoopInput.apply(h, h, None, first, 0.7, 0.1)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(mixed.sum(), h, create_graph=True)


def test_a_second_backward_pass_is_refused() -> None:
    (q, k, v, gate, _), start = window_inputs()
    inputs = [x.requires_grad_() for x in (gate, q, k, v, k.clone(), v.clone())]
    out = ours(inputs, Documents.packed(start), 64)
    out.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="runs once"):
        out.sum().backward()
