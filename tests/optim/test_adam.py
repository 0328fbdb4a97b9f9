"""FusedAdam against torch's AdamW, and the state that megatron-core relies on."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from loopcoder.optim import adam
from loopcoder.optim.adam import FusedAdam

SHAPES = ((3, 5), (7,), (2, 3, 4), ())
OPTIONS = dict(betas=(0.9, 0.95), eps=1e-8)


def groups(generator: torch.Generator) -> list[dict]:
    """Two parameter groups: decayed and not, with other rates."""
    tensors = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]
    return [
        {"params": tensors[:2], "lr": 1e-2, "weight_decay": 0.1},
        {"params": tensors[2:], "lr": 3e-3, "weight_decay": 0.0},
    ]


def tensors(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def draw_gradients(optimizer, generator: torch.Generator) -> None:
    for p in tensors(optimizer):
        p.grad = torch.randn(p.shape, generator=generator)


def test_equals_torch(seed):
    generator = torch.Generator().manual_seed(seed)
    start = groups(generator)
    ours = FusedAdam(copy.deepcopy(start), lr=1.0, **OPTIONS)
    theirs = torch.optim.AdamW(copy.deepcopy(start), lr=1.0, **OPTIONS)
    for _ in range(6):
        draw_gradients(ours, generator)
        for p, q in zip(tensors(ours), tensors(theirs), strict=True):
            q.grad = p.grad.clone()
        # A schedule changes the rates between steps.
        factor = 0.5 + torch.rand((), generator=generator).item()
        for optimizer in (ours, theirs):
            for group in optimizer.param_groups:
                group["lr"] *= factor
            optimizer.step()
        for p, q in zip(tensors(ours), tensors(theirs), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
            for moment in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(
                    ours.state[p][moment], theirs.state[q][moment], rtol=1e-6, atol=1e-9
                )


def test_first_step_by_hand(seed):
    """After one step both moments are the gradient's, so that the step is lr * sign(g), decay
    apart."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = FusedAdam(groups(generator), eps=1e-12)
    before = [p.detach().clone() for p in tensors(optimizer)]
    draw_gradients(optimizer, generator)
    optimizer.step()
    options = [group for group in optimizer.param_groups for _ in group["params"]]
    for p, old, group in zip(tensors(optimizer), before, options, strict=True):
        expected = old - group["lr"] * (p.grad.sign() + group["weight_decay"] * old)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)


def test_state_is_laid_out_like_transformer_engines(seed):
    generator = torch.Generator().manual_seed(seed)
    optimizer = FusedAdam(groups(generator), **OPTIONS)
    for step in range(1, 4):
        draw_gradients(optimizer, generator)
        optimizer.step()
        assert [group["step"] for group in optimizer.param_groups] == [step, step]
    for p in tensors(optimizer):
        assert optimizer.state[p].keys() == {"exp_avg", "exp_avg_sq"}
        assert optimizer.state[p]["exp_avg"].shape == p.shape


def test_goes_on_from_a_saved_state(seed):
    generator = torch.Generator().manual_seed(seed)
    first = FusedAdam(groups(generator), **OPTIONS)
    for _ in range(3):
        draw_gradients(first, generator)
        first.step()
    second = FusedAdam(copy.deepcopy(first.param_groups), **OPTIONS)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    draw_gradients(first, generator)
    for p, q in zip(tensors(first), tensors(second), strict=True):
        q.grad = p.grad.clone()
    first.step()
    second.step()
    for p, q in zip(tensors(first), tensors(second), strict=True):
        assert torch.equal(p, q)
    assert second.param_groups[0]["step"] == 4


def test_leaves_parameters_without_a_gradient_alone(seed):
    generator = torch.Generator().manual_seed(seed)
    optimizer = FusedAdam(groups(generator), **OPTIONS)
    draw_gradients(optimizer, generator)
    idle, group = tensors(optimizer)[0], optimizer.param_groups[1]
    idle.grad = None
    for p in group["params"]:
        p.grad = None
    before = [p.detach().clone() for p in tensors(optimizer)]
    optimizer.step()
    changed = [not torch.equal(p, old) for p, old in zip(tensors(optimizer), before, strict=True)]
    assert changed == [False, True, False, False]
    assert idle not in optimizer.state


@pytest.mark.parametrize("option", [{"adam_w_mode": False}, {"capturable": True}])
def test_refuses_what_it_does_not_do(option):
    with pytest.raises(NotImplementedError):
        FusedAdam([torch.nn.Parameter(torch.zeros(2))], **option)


def test_divides_and_refuses_on_the_device(seed):
    generator = torch.Generator().manual_seed(seed)
    start = groups(generator)
    scaled, plain = (FusedAdam(copy.deepcopy(start), **OPTIONS) for _ in range(2))
    draw_gradients(scaled, generator)
    for p, q in zip(tensors(scaled), tensors(plain), strict=True):
        q.grad = p.grad / 3.0
    scaled.grad_divisor, scaled.is_refused = torch.tensor(3.0), torch.tensor(0.0)
    scaled.step()
    plain.step()
    for p, q in zip(tensors(scaled), tensors(plain), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    before = copy.deepcopy(scaled.state_dict()["state"]), [p.clone() for p in tensors(scaled)]
    draw_gradients(scaled, generator)
    scaled.is_refused = torch.tensor(1.0)
    scaled.step()
    assert all(torch.equal(p, q) for p, q in zip(tensors(scaled), before[1], strict=True))
    for index, state in scaled.state_dict()["state"].items():
        for name, x in state.items():
            assert torch.equal(x, before[0][index][name])


def test_steps_that_are_counted_beforehand(seed):
    """The same weights, and on the device what the kernel needs: to the bit what it is handed over
    otherwise, which is rounded to fp32 as well."""
    generator = torch.Generator().manual_seed(seed)
    start = groups(generator)
    plain, counted = (FusedAdam(copy.deepcopy(start), **OPTIONS) for _ in range(2))
    for step in range(1, 5):
        draw_gradients(plain, generator)
        for p, q in zip(tensors(plain), tensors(counted), strict=True):
            q.grad = p.grad.clone()
        for optimizer in (plain, counted):
            for number, group in enumerate(optimizer.param_groups):
                group["lr"] = 1e-2 / (step + number)
        plain.step()
        counted.begin_step()
        where = counted.numbers.data_ptr()
        counted.step()
        assert all(map(torch.equal, tensors(plain), tensors(counted)))
        for group, row in zip(counted.param_groups, counted.numbers, strict=True):
            assert group["step"] == step
            beta1, beta2 = OPTIONS["betas"]
            expected = [
                group["lr"] * group["weight_decay"],
                group["lr"] / (1 - beta1**step),
                1 / (1 - beta2**step) ** 0.5,
            ]
            torch.testing.assert_close(row, torch.tensor(expected), rtol=2e-7, atol=0)
    counted.begin_step()  # where a graph reads them
    assert counted.numbers.data_ptr() == where


@pytest.mark.parametrize("installed", [torch.optim.AdamW, type("TransformerEnginesAdam", (), {})])
def test_megatron_builds_it(monkeypatch, installed):
    factory = SimpleNamespace(Adam=installed, USING_PYTORCH_OPTIMIZER=True)
    distributed = SimpleNamespace(Adam=installed, HAVE_APEX_OR_TE=False, USING_APEX_OPTIMIZER=False)
    modules = {
        "megatron.core.optimizer": factory,
        "megatron.core.optimizer.distrib_optimizer": distributed,
    }
    monkeypatch.setattr(adam, "importlib", SimpleNamespace(import_module=modules.__getitem__))
    adam.use_in_megatron()
    assert factory.Adam is distributed.Adam is FusedAdam
    assert not factory.USING_PYTORCH_OPTIMIZER
    assert distributed.HAVE_APEX_OR_TE and distributed.USING_APEX_OPTIMIZER
