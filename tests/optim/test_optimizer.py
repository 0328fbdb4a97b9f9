"""One checked update: what is decayed and clipped, and that a bad gradient changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.configs import small_config

VOCAB, EOD = 128, 7
TOKENS = torch.tensor(37.0)
"""What the gradients of a summed loss are divided by."""


def build(ranks, *, precision: str = "fp32", distributed: bool = True, **optim):
    from loopcoder.train.state import build_state

    config = small_config(precision=precision, distributed_optimizer=distributed)
    config = replace(config, optim=replace(config.optim, **optim))
    return build_state(config, ranks, VOCAB), config


def set_gradients(state, generator: torch.Generator, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Put random gradients where backward and reduction leave them."""
    out = {}
    for name, parameter in state.network.named_parameters():
        out[name] = scale * torch.randn(parameter.shape, generator=generator)
        parameter.main_grad.copy_(out[name] * TOKENS)
    return out


def weights(state) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in state.network.named_parameters()}


def moments(state) -> list[torch.Tensor]:
    """Main parameters and Adam's moments, of all chained optimizers."""
    out = []
    for optimizer in getattr(state.optimizer, "chained_optimizers", [state.optimizer]):
        for group in optimizer.optimizer.param_groups:
            for p in group["params"]:
                out += [p.detach(), *optimizer.optimizer.state[p].values()]
    return [x.clone() for x in out if isinstance(x, torch.Tensor)]


def global_norm(gradients: dict[str, torch.Tensor]) -> float:
    return torch.cat([g.flatten().double() for g in gradients.values()]).norm().item()


@pytest.mark.parametrize("clip_grad", [0.0, 1.0, 1e6], ids=["off", "clips", "too_small_to_clip"])
@pytest.mark.parametrize("distributed", [True, False])
def test_against_torch(ranks, seed, distributed, clip_grad):
    """Several updates of all parameters against torch's AdamW, clipping and decay groups by
    hand."""
    from loopcoder.optim.optimizer import update

    generator = torch.Generator().manual_seed(seed)
    state, config = build(ranks, distributed=distributed, clip_grad=clip_grad, weight_decay=0.2)
    copies = {name: torch.nn.Parameter(w) for name, w in weights(state).items()}
    exempt = [name for name in copies if "norm" in name or name.endswith("bias")]
    assert (
        len(exempt) == 2 * 4 + 1
    )  # three norms and the gate's bias in each layer, and the final norm
    reference = torch.optim.AdamW(
        [
            {"params": [p for n, p in copies.items() if n not in exempt], "weight_decay": 0.2},
            {"params": [copies[n] for n in exempt], "weight_decay": 0.0},
        ],
        betas=(config.optim.beta1, config.optim.beta2),
        eps=config.optim.eps,
    )
    for step in range(1, 5):
        gradients = set_gradients(state, generator)
        lr = 1e-2 / step
        norm = update(state.optimizer, config.optim, lr, TOKENS).item()
        expected = global_norm(gradients)
        assert norm == pytest.approx(expected, rel=1e-5)  # before clipping
        factor = min(1.0, clip_grad / expected) if clip_grad else 1.0
        for name, p in copies.items():
            p.grad = gradients[name] * factor
        for group in reference.param_groups:
            group["lr"] = lr
        reference.step()
        for name, p in state.network.named_parameters():
            torch.testing.assert_close(
                p.detach(), copies[name].detach(), rtol=1e-4, atol=1e-5, msg=name
            )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_changes_nothing(ranks, seed, precision, bad):
    from loopcoder.optim.optimizer import update

    generator = torch.Generator().manual_seed(seed)
    state, config = build(ranks, precision=precision)
    set_gradients(state, generator)
    update(state.optimizer, config.optim, 1e-2, TOKENS)
    # A fresh gradient, with one bad number in one tensor.
    set_gradients(state, generator)
    names = [name for name, _ in state.network.named_parameters()]
    victim = names[int(torch.randint(len(names), (), generator=generator))]
    parameter = dict(state.network.named_parameters())[victim]
    parameter.main_grad.view(-1)[-1] = bad
    before, inner = weights(state), moments(state)
    assert not update(state.optimizer, config.optim, 1e-2, TOKENS).isfinite()
    assert all(torch.equal(w, before[name]) for name, w in weights(state).items())
    assert len(inner) > 2 * len(before)  # the moments are among them
    assert all(torch.equal(a, b) for a, b in zip(moments(state), inner, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(ranks, seed, bad):
    from loopcoder.optim.optimizer import update

    generator = torch.Generator().manual_seed(seed)
    state, config = build(ranks)
    set_gradients(state, generator)
    before, loss = weights(state), torch.tensor(bad)
    assert update(state.optimizer, config.optim, 1e-2, TOKENS, loss=loss).isfinite()
    assert all(torch.equal(w, before[name]) for name, w in weights(state).items())


def test_the_same_update_is_possible_after_a_bad_one(ranks, seed):
    """What was refused leaves no trace in the next step either."""
    from loopcoder.optim.optimizer import update

    results = []
    for refuse in (False, True):
        generator = torch.Generator().manual_seed(seed)
        state, config = build(ranks)
        if refuse:
            set_gradients(state, torch.Generator().manual_seed(seed + 1))
            next(iter(state.network.parameters())).main_grad.fill_(float("nan"))
            assert not update(state.optimizer, config.optim, 1.0, TOKENS).isfinite()
            for inner in getattr(state.optimizer, "chained_optimizers", [state.optimizer]):
                for group in inner.optimizer.param_groups:
                    group["step"] = 0  # the count of steps goes on, and the run does not
            state.ddp.zero_grad_buffer()
            state.optimizer.zero_grad()
        set_gradients(state, generator)
        update(state.optimizer, config.optim, 1e-2, TOKENS)
        results.append(weights(state))
    assert all(torch.equal(w, results[1][name]) for name, w in results[0].items())


def test_bf16_keeps_fp32_main_weights(ranks, seed):
    """Updates smaller than bf16 can show add up instead of being lost."""
    from loopcoder.optim.optimizer import update

    generator = torch.Generator().manual_seed(seed)
    state, config = build(ranks, precision="bf16", clip_grad=0.0, weight_decay=0.0)
    before = weights(state)
    gradients = set_gradients(state, generator)
    # Adam moves by about lr: 1/4000 of a weight of 1, where bf16's steps are 1/128 or 1/256.
    for _ in range(40):
        for name, p in state.network.named_parameters():
            p.main_grad.copy_(gradients[name] * TOKENS)
        update(state.optimizer, config.optim, 2.5e-4, TOKENS)
    norm = "decoder.final_layernorm.weight"
    moved = weights(state)[norm].float() - before[norm].float()
    expected = -0.01 * gradients[norm].sign()
    torch.testing.assert_close(moved, expected, rtol=0, atol=2**-8)
    assert moved.abs().min() > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_are_those_of_megatrons_own_step(ranks, seed, precision, monkeypatch):
    """In fp32 on one rank Adam steps the model's weights, and what megatron-core does after it is
    left out; elsewhere it is not."""
    from loopcoder.optim import optimizer as module

    found, by_megatron = [], []
    judge = module._step_all_weights
    for judged in (judge, lambda *_: False):
        monkeypatch.setattr(module, "_step_all_weights", judged)
        state, config = build(ranks, precision=precision)
        whole = state.optimizer.step_with_ready_grads
        state.optimizer.step_with_ready_grads = lambda call=whole: by_megatron.append(call())
        generator = torch.Generator().manual_seed(seed)
        for _ in range(2):
            set_gradients(state, generator)
            module.update(state.optimizer, config.optim, 1e-2, TOKENS)
        found.append(weights(state))
    assert len(by_megatron) == (2 if precision == "fp32" else 4)
    ours, theirs = found
    assert all(torch.equal(w, theirs[name]) for name, w in ours.items())
