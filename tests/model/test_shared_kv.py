"""Gradients of later loops for what loop 0 keeps are added up in fp32, in one graph and in many."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from loopcoder.model.shared_kv import DetachedSharedKV, SharedKV


def gradient(store: SharedKV, kept: Tensor, sent: list[Tensor]) -> Tensor:
    """Return the gradient of what loop 0 keeps, where each later loop sends one for it; the graphs
    are those of one process or of a pipeline, by the kind of store."""
    x = kept.clone().requires_grad_()
    hidden = store.keep("layer", torch.zeros_like(kept).requires_grad_(), (x,))
    chunks = [hidden]  # a loop's output, and so the next one's input
    for grad in sent:
        before = chunks[-1]
        if isinstance(store, DetachedSharedKV):
            before = before.detach().requires_grad_()
        (value,) = store.of("layer")
        assert torch.equal(value, kept)
        chunks.append(before + value * grad)
    if isinstance(store, DetachedSharedKV):
        for chunk in reversed(chunks):
            chunk.backward(torch.ones_like(chunk))
    else:
        chunks[-1].backward(torch.ones_like(kept))
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("loops", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_sum_over_loops_is_rounded_once(seed: int, dtype: torch.dtype, loops: int) -> None:
    """Autograd's own sum is rounded at each addition: alike up to two terms, then further off."""
    generator = torch.Generator().manual_seed(seed)
    kept, *sent = (
        torch.randn(500, generator=generator, dtype=torch.float64).to(dtype) for _ in range(loops)
    )
    found = gradient(SharedKV(), kept, sent)
    assert torch.equal(found, gradient(DetachedSharedKV(), kept, sent))
    terms = torch.stack(sent).double()
    exact = terms.sum(0)
    wide = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    bound = exact.abs() * torch.finfo(dtype).eps / 2 + terms.abs().sum(0) * loops * wide
    assert found.dtype == dtype
    assert ((found.double() - exact).abs() <= bound).all()

    plain = kept.clone().requires_grad_()
    sum((plain * grad for grad in sent), torch.zeros_like(kept)).backward(torch.ones_like(kept))
    assert plain.grad is not None
    if dtype in (torch.float32, torch.float64) or len(sent) <= 2:
        assert torch.equal(found, plain.grad)  # autograd adds in the same order
    else:
        assert (found.double() - exact).norm() < (plain.grad.double() - exact).norm()


def test_loop_0_waits_for_every_use() -> None:
    """Also where a use has a long way from the loss: an edge of the graph makes it wait."""
    x = torch.ones(3, requires_grad=True)
    store = SharedKV()
    hidden = store.keep("layer", torch.zeros(3, requires_grad=True), (x,))
    (value,) = store.of("layer")
    for _ in range(50):
        value = value * 1
    (hidden * 2 + value * 3).sum().backward()  # no way from the use to `hidden`
    assert x.grad is not None and x.grad.tolist() == [3.0, 3.0, 3.0]


def test_nothing_is_kept_when_a_graph_is_gone() -> None:
    import gc
    import weakref

    gc.disable()  # reference counts alone have to free it
    try:
        store: Any = SharedKV()
        x = torch.ones(3, requires_grad=True)
        hidden = store.keep("layer", torch.zeros(3, requires_grad=True), (x * 2,))
        out = hidden + store.of("layer")[0]
        slot = weakref.ref(store._by_key["layer"][0])
        out.sum().backward()
        del store, hidden, out
        assert slot() is None
    finally:
        gc.enable()
