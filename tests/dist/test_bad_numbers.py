"""A bad number on one rank reaches the weights of none, in any layout."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from loopcoder.config.schema import Config
from tests.configs import small_config
from tests.dist.launch import in_processes

LAYOUTS: dict[str, dict[str, int]] = {"dp": {}, "tp": {"tp": 2}, "pp": {"pp": 2}}
KINDS = ("norm", "gate", "linear_qkv.weight", "linear_fc2.weight")


def _step(state: Any, config: Config, victim: str | None, loss: float) -> tuple[bool, bool]:
    """Whether the norm of a step is finite and whether this rank's weights changed; the last
    element of the victim's gradient on this rank is NaN."""
    from loopcoder.optim.optimizer import update

    network = dict(state.network.named_parameters())
    state.ddp.zero_grad_buffer()
    state.optimizer.zero_grad()
    for parameter in network.values():
        parameter.main_grad.fill_(0.01)
    if victim is not None:
        network[victim].main_grad.view(-1)[-1] = math.nan
    state.config.finalize_model_grads_func([state.ddp], None)
    before = {name: p.detach().clone() for name, p in network.items()}
    tokens, tp_size = torch.tensor(8.0), config.parallel.tp
    losses = torch.tensor(loss)
    norm = update(state.optimizer, config.optim, 1e-2, tokens, loss=losses, tp_size=tp_size)
    changed = any(not torch.equal(p, before[name]) for name, p in network.items())
    return bool(norm.isfinite()), changed


def _what_gets_through(rank: int) -> list[str]:
    from loopcoder.parallel import mcore
    from loopcoder.train.state import build_state

    wrong: list[str] = []
    for name, layout in LAYOUTS.items():
        config = small_config(**layout)
        state = build_state(config, mcore.initialise(config.parallel, 1), 256)
        names = [n for n, _ in state.network.named_parameters()]
        for kind in KINDS:
            victim = next((n for n in names if kind in n), names[0])
            for bad_rank in (0, 1):
                found = _step(state, config, victim if rank == bad_rank else None, 1.0)
                if found != (False, False):
                    wrong.append(f"{name}: {victim} of rank {bad_rank}: {found}")
        if _step(state, config, None, math.inf) != (True, False):
            wrong.append(f"{name}: a loss that is not finite")
        if _step(state, config, None, 1.0) != (True, True):
            wrong.append(f"{name}: a good step is refused")
    return wrong


@pytest.mark.dist
@pytest.mark.dist_full
def test_a_bad_number_reaches_the_weights_of_no_rank() -> None:
    """A NaN in a norm's gradient of the second tensor-parallel rank went into its weights."""
    assert in_processes(2, _what_gets_through) == [[], []]
