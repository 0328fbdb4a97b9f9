"""What a real build allocates, and what the planner says of it."""

from __future__ import annotations

from typing import Any

import torch

from loopcoder.config.schema import Config
from loopcoder.plan.memory import rank_memory


def bytes_of(tensors: Any) -> int:
    """Bytes of the storages behind tensors, each once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def allocated(config: Config, ranks: Any, vocab_size: int) -> tuple[int, int, int]:
    """Build a state, update it once, and return the bytes of weights, gradients and optimizer."""
    from loopcoder.optim.optimizer import update
    from loopcoder.train.state import build_state

    state = build_state(config, ranks, vocab_size)
    update(state.optimizer, config.optim, 1e-3, torch.ones((), device=ranks.device))
    weights = list(state.network.parameters())
    gradients = [buffer.grad_data for buffer in state.ddp.buffers]
    inner = getattr(state.optimizer, "chained_optimizers", [state.optimizer])
    held = [
        tensor
        for one in inner
        for parameter, moments in one.optimizer.state.items()
        for tensor in (parameter, *moments.values())
    ]
    in_weights = {w.untyped_storage().data_ptr() for w in weights}
    own = [t for t in held if t.untyped_storage().data_ptr() not in in_weights]
    return bytes_of(weights), bytes_of(gradients), bytes_of(own)


def planned(config: Config, vocab_size: int, world: int, pp: int, dp: int) -> tuple[int, int, int]:
    memory = rank_memory(config, vocab_size, world, pp, dp)
    return memory.weights_bytes, memory.gradients_bytes, memory.optimizer_bytes
