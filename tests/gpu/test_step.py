"""A training step on the GPU: FP8 weights are shared by loops, and the host is never waited for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.checkpoint.states import state_at
from tests.configs import small_config
from tests.gpu.test_transformer_engine import LENGTH, VOCAB, WIDE, error

pytestmark = pytest.mark.gpu

RECIPES = ["fp8_tensorwise", "fp8_blockwise"]


def build(
    ranks: Any, precision: str, loops: int, *, caches: bool = True, kernels: str = "stock"
) -> tuple[Any, Any]:
    from loopcoder.train.state import build_state

    model = WIDE | dict(num_loops=loops, layer_spec="te", window=16, kernels=kernels)
    config = small_config(model, precision)
    config = replace(config, optim=replace(config.optim, lr=1e-3))
    state = build_state(config, ranks, VOCAB)
    for module in state.network.modules():
        if hasattr(module, "disable_parameter_transpose_cache"):
            module.disable_parameter_transpose_cache = not caches
    return state, config


def batches(seed: int, count: int, *, pinned: bool = False) -> list[Any]:
    from loopcoder.data.batch import make_batch

    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, VOCAB, (2 * count, LENGTH + 1), generator=generator)
    ids = torch.arange(2)
    made = [make_batch(part, ids, ids * 0, eod=3) for part in rows.split(2)]
    return [b.pin() for b in made] if pinned else made


def gradients(state: Any) -> torch.Tensor:
    return torch.cat([p.main_grad.flatten() for p in state.network.parameters()]).float()


@pytest.mark.parametrize("loops", [1, 2, 3])
@pytest.mark.parametrize("recipe", RECIPES)
def test_shared_fp8_weights_change_nothing(ranks: Any, seed: int, recipe: str, loops: int) -> None:
    """Against weights that are quantised anew in every loop of every microbatch: gradients of
    several steps, with updates and an evaluation between them."""
    from loopcoder.optim.optimizer import update
    from loopcoder.train.step import forward_backward, losses

    shared, config = build(ranks, recipe, loops)
    anew, _ = build(ranks, recipe, loops, caches=False)
    for step in range(3):
        found = []
        for state in (shared, anew):
            sums = forward_backward(state, batches(seed + step, 2), 1)
            found.append((gradients(state).clone(), (sums[0] / sums[1]).item()))
            update(state.optimizer, config.optim, config.optim.lr, sums[1].sum())
            with torch.no_grad():
                device_batches = [b.to(state.ranks.device) for b in batches(seed - 1, 1)]
                found[-1] += (next(iter(losses(state, device_batches, every_loop=False))).mean(),)
        (ours, our_loss, our_eval), (theirs, their_loss, their_eval) = found
        assert error(ours, theirs) <= 1e-3, step
        assert our_loss == pytest.approx(their_loss, rel=1e-4)
        assert our_eval.item() == pytest.approx(their_eval.item(), rel=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_weights_are_quantised_once_a_step(
    ranks: Any, seed: int, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformer_engine.pytorch.module import base, layernorm_linear, linear

    from loopcoder.train.step import forward_backward

    state, _ = build(ranks, recipe, 3)
    made: list[bool] = []
    original = base.quantize_weight

    def counting(**kwargs: Any) -> Any:
        out = original(**kwargs)
        made.append(out[1] is not None or bool(kwargs.get("update_workspace")))
        return out

    for module in (linear, layernorm_linear):
        monkeypatch.setattr(module, "quantize_weight", counting)
    for _ in range(2):
        made.clear()
        forward_backward(state, batches(seed, 2), 1)
        assert len(made) == 4 * 2 * 3 * 2  # products of a layer, layers, loops, microbatches
        assert sum(made) == 4 * 2


@pytest.mark.parametrize("precision", ["bf16", *RECIPES])
@pytest.mark.parametrize(("loops", "kernels"), [(1, "stock"), (2, "stock"), (2, "cuda")])
def test_a_step_never_waits_for_the_gpu(
    ranks: Any, seed: int, precision: str, loops: int, kernels: str
) -> None:
    from loopcoder.optim.optimizer import update
    from loopcoder.train.health import Health
    from loopcoder.train.step import forward_backward
    from tests.train.test_health import step_data

    state, config = build(ranks, precision, loops, kernels=kernels)
    health = Health(config.faults, state.ranks.device)

    def step(number: int) -> None:
        sums = forward_backward(state, data, 1)
        loss, tokens = sums.sum(1)
        norm = update(state.optimizer, config.optim, config.optim.lr, tokens, loss=loss)
        health.note(step_data(number), sums, norm)

    data = batches(seed, 2, pinned=True)
    for number in (1, 2):  # kernels are compiled, moments are made
        step(number)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # a synchronising call raises
    try:
        step(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    health.check()


def test_delayed_scaling_trains_one_loop_and_resumes(ranks: Any, seed: int, tmp_path: Any) -> None:
    """Its history of maxima and its scales are in the checkpoint."""
    from loopcoder.checkpoint.format import find
    from loopcoder.checkpoint.load import load
    from loopcoder.checkpoint.save import Saver
    from loopcoder.optim.optimizer import update
    from loopcoder.train.step import forward_backward

    def train(state: Any, steps: range) -> float:
        for step in steps:
            sums = forward_backward(state, batches(seed + step, 2), 1)
            update(state.optimizer, config.optim, config.optim.lr, sums[1].sum())
        return (sums[0] / sums[1]).item()

    def fp8_state(state: Any) -> list[torch.Tensor]:
        linears = [m for m in state.network.modules() if hasattr(m, "fuse_wgrad_accumulation")]
        metas = [linear.fp8_meta for linear in linears]
        scalings = [meta[k] for meta in metas for k in ("scaling_fwd", "scaling_bwd") if k in meta]
        return [x.clone() for s in scalings for x in (s.scale, s.amax_history)]

    state, config = build(ranks, "fp8_delayed", 1)
    train(state, range(4))
    saver = Saver(config, tmp_path, lambda *_, **__: None)
    saver.save(state.network, state.ddp, state.optimizer, state_at(4))
    saved = fp8_state(state)
    assert len(saved) >= 2 * 2 * 4 * 2 and any((x != 1).any() for x in saved[::2])
    expected = train(state, range(4, 5))
    resumed, _ = build(ranks, "fp8_delayed", 1)
    load(find(tmp_path), resumed.network, resumed.optimizer, config)
    loaded = fp8_state(resumed)
    assert all(torch.equal(a, b) for a, b in zip(saved, loaded, strict=True))
    assert train(resumed, range(4, 5)) == pytest.approx(expected, rel=1e-5)


def test_delayed_scaling_starts_from_bf16_and_the_other_way(
    ranks: Any, seed: int, tmp_path: Any
) -> None:
    """The history is asked for where the checkpoint has one, and no weight depends on it."""
    from loopcoder.checkpoint.format import find
    from loopcoder.checkpoint.load import load
    from loopcoder.checkpoint.save import Saver
    from loopcoder.optim.optimizer import update
    from loopcoder.train.step import forward_backward

    for saved, loaded in (("bf16", "fp8_delayed"), ("fp8_delayed", "bf16")):
        state, config = build(ranks, saved, 1)
        sums = forward_backward(state, batches(seed, 2), 1)
        update(state.optimizer, config.optim, config.optim.lr, sums[1].sum())
        forward_backward(state, batches(seed, 2), 1)
        folder = tmp_path / saved
        Saver(config, folder, lambda *_, **__: None).save(
            state.network, state.ddp, state.optimizer, state_at(1)
        )
        other, config = build(ranks, loaded, 1)
        with torch.no_grad():
            for parameter in other.network.parameters():
                parameter.zero_()
        load(find(folder), other.network, other.optimizer, config)
        weights = dict(state.network.named_parameters())
        assert all(torch.equal(p, weights[n]) for n, p in other.network.named_parameters())
        forward_backward(other, batches(seed, 2), 1)
        assert error(gradients(other), gradients(state)) < 0.3


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("start", "end"), [(1, 0), (0, 1), (1, 1)])
def test_layers_at_the_ends_stay_in_bf16(
    ranks: Any, seed: int, recipe: str, start: int, end: int
) -> None:
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward

    state, config = build(ranks, recipe, 2)
    precision = replace(config.precision, bf16_layers_at_start=start, bf16_layers_at_end=end)
    mixed = build_state(replace(config, precision=precision), ranks, VOCAB)
    forward_backward(mixed, batches(seed, 2), 1)
    copies = [
        sum(len(m._fp8_workspaces) for m in layer.modules() if hasattr(m, "_fp8_workspaces"))
        for layer in mixed.network.decoder.layers
    ]
    assert [bool(c) for c in copies] == [not start, not end]
    bf16, _ = build(ranks, "bf16", 2)
    for other in (state, bf16):
        forward_backward(other, batches(seed, 2), 1)
    apart = error(gradients(mixed), gradients(bf16))
    if start and end:
        assert apart == 0.0
    else:
        assert 0.0 < apart < 1.5 * error(gradients(state), gradients(bf16))


@pytest.mark.parametrize("loops", [1, 2])
def test_weight_gradients_are_fused_without_apex(
    ranks: Any, seed: int, monkeypatch: pytest.MonkeyPatch, loops: int
) -> None:
    """From a plain installation: the head's gradient is that of autograd but for its rounding to
    bf16, all others are the same, and it takes no more memory."""
    from megatron.core.tensor_parallel import layers

    from loopcoder.train.step import forward_backward

    monkeypatch.setattr(layers, "_grad_accum_fusion_available", False)
    monkeypatch.setattr(layers, "fused_weight_gradient_mlp_cuda", None, raising=False)
    found, peaks = [], []
    for is_fused in (True, False):
        state, _ = build(ranks, "bf16", loops)
        linears = [m for m in state.network.modules() if hasattr(m, "fuse_wgrad_accumulation")]
        assert linears and all(m.fuse_wgrad_accumulation for m in linears)
        head = state.network.output_layer
        assert head.gradient_accumulation_fusion
        head.gradient_accumulation_fusion = is_fused
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward_backward(state, batches(seed, 2), 1)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        grads = {n: p.main_grad.clone() for n, p in state.network.named_parameters()}
        found.append(grads)
        del state
    fused, autograd = found
    for name, gradient in fused.items():
        if name == "output_layer.weight":
            assert 0 < error(gradient, autograd[name]) < 1e-2
        else:
            assert torch.equal(gradient, autograd[name]), name
    assert peaks[0] <= peaks[1]
