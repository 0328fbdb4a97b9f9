"""Which steps are bad, and after how many a run goes back."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from loopcoder.config.faults import FaultsConfig
from loopcoder.data.loader import StepData
from loopcoder.data.sampler import Position
from loopcoder.errors import EXIT_NO_RETRY
from loopcoder.train.health import Health, Trouble, diverged
from tests.dist.launch import in_processes

NAN, INF = math.nan, math.inf


def step_data(step: int, stage: int = 0) -> StepData:
    before = Position(step - 1, stage, sample=8 * (step - 1))
    after = replace(before, step=step, sample=8 * step)
    return StepData([], before, after, 8, np.zeros(0, np.int64))


def judged(
    faults: FaultsConfig,
    losses: list[float],
    norms: list[float] | None = None,
    *,
    every: int = 1,
    stages: list[int] | None = None,
) -> tuple[Trouble | None, Health]:
    """Return the first trouble of a run with these losses and norms, looked for every few steps."""
    health = Health(faults, torch.device("cpu"))
    norms, stages = norms or [1.0] * len(losses), stages or [0] * len(losses)
    for step, (loss, norm, stage) in enumerate(zip(losses, norms, stages, strict=True), 1):
        sums = torch.tensor([[loss * 2, loss * 2], [3.0, 1.0]])
        health.note(step_data(step, stage), sums, torch.tensor(norm))
        if step % every == 0 and (found := health.check()):
            return found, health
    return health.check(), health


@pytest.mark.parametrize("every", [1, 2, 100])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("which", ["loss", "norm"])
def test_so_many_steps_in_a_row_that_are_not_finite(which: str, bad: float, every: int) -> None:
    values = [2.0, bad, 2.0, bad, bad, 2.0, bad, bad, bad, 2.0]
    fine = [2.0] * len(values)
    losses, norms = (values, fine) if which == "loss" else (fine, values)
    trouble, health = judged(FaultsConfig(bad_steps=3), losses, norms, every=every)
    assert trouble == Trouble("not finite", 7, 9)
    found = list(health.taken())
    assert [(b.step, b.sample, b.samples) for b in found] == [
        (s, 8 * (s - 1), 8) for s in (2, 4, 5, 7, 8, 9)
    ]
    assert not list(health.taken())
    error = diverged(trouble, 1e-3)
    assert error.exit_code == EXIT_NO_RETRY and "optim.lr=0.0005" in str(error)
    assert "step 9: the loss or gradient is not finite, for 3 steps in a row" in str(error)


def test_fewer_are_suspicious_until_a_good_one() -> None:
    faults = FaultsConfig(bad_steps=3)
    trouble, health = judged(faults, [2.0, NAN, NAN])
    assert trouble is None and health.is_suspicious
    trouble, health = judged(faults, [2.0, NAN, NAN, 2.0])
    assert trouble is None and not health.is_suspicious


SPIKES = FaultsConfig(spike_nats=0.5, spike_steps=3, spike_window=4)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2.0] * 4 + [2.8, 2.8, 2.4, 2.8, 2.8, 2.8], Trouble("spike", 8, 10)),
        ([2.0] * 4 + [2.6, 2.6, NAN, 2.6], Trouble("spike", 5, 8)),  # a bad step ends no spike
        ([2.0] * 4 + [2.4] * 9, None),
        ([2.0] * 3 + [9.0] * 3, None),  # the mean is not known yet
        ([8.0, 7.0, 6.0, 5.0] + [4.0] * 9, None),
    ],
)
def test_a_loss_that_stays_above_its_mean(losses: list[float], expected: Trouble | None) -> None:
    trouble, _ = judged(SPIKES, losses)
    assert trouble == expected


def test_another_stage_of_data_is_no_spike() -> None:
    trouble, _ = judged(SPIKES, [2.0] * 6 + [4.0] * 9, stages=[0] * 6 + [1] * 9)
    assert trouble is None


def test_no_rule_for_spikes_by_default() -> None:
    assert judged(FaultsConfig(), [2.0] * 200 + [50.0] * 50)[0] is None


def _with_a_bad_rank(rank: int, layouts: list[dict[str, Any]]) -> list[Any]:
    """Spoil one element of one rank's gradient before it is reduced; return of each layout whether
    the weights are as before, and which steps this rank finds bad."""
    import torch.distributed as dist

    from loopcoder.optim.optimizer import update
    from loopcoder.parallel import mcore
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward
    from tests.configs import small_config
    from tests.dist.layouts import DOMAINS, VOCAB, global_batch, microbatches

    found = []
    for parallel in layouts:
        config = small_config(dict(num_layers=4), **parallel)
        config = replace(config, faults=FaultsConfig(bad_steps=1))
        ranks = mcore.initialise(config.parallel, 1)
        state = build_state(config, ranks, VOCAB)
        schedule: Any = state.chunks[0].config if state.chunks else state.config
        finish = schedule.finalize_model_grads_func

        def spoil(*args: Any, finish: Any = finish, state: Any = state, **more: Any) -> None:
            if dist.get_rank() == dist.get_world_size() - 1:
                next(state.network.parameters()).main_grad.view(-1)[0] = NAN
            finish(*args, **more)

        schedule.finalize_model_grads_func = spoil
        ids = global_batch(5, 0, config.train.global_batch_size, config.data.seq_length)
        mine = microbatches(config, ids, True, ranks.dp_rank, ranks.dp_size)
        before = [p.detach().clone() for p in state.network.parameters()]
        sums = forward_backward(state, mine, DOMAINS)
        loss, tokens = sums.sum(1)
        norm = update(state.optimizer, config.optim, 1e-2, tokens, loss=loss)
        health = Health(config.faults, ranks.device)
        health.note(step_data(1), sums, norm)
        trouble = health.check()
        same = all(
            torch.equal(a, b) for a, b in zip(before, state.network.parameters(), strict=True)
        )
        found.append((same, trouble))
    return found


@pytest.mark.dist_full
def test_one_rank_with_a_bad_gradient_changes_no_rank() -> None:
    layouts: list[dict[str, Any]] = [{}, dict(distributed_optimizer=False), dict(tp=2), dict(pp=2)]
    for found in in_processes(2, _with_a_bad_rank, layouts):
        assert found == [(True, Trouble("not finite", 1, 1))] * len(layouts)
