"""Whether the steps were good, remembered on the device until somebody needs to know."""

from __future__ import annotations

import torch
from torch import Tensor

from loopcoder.config.schema import OptimConfig
from loopcoder.errors import TrainingDiverged


class Health:
    """Remembers, on the device, the first step whose gradient norm was not finite."""

    def __init__(self, optim: OptimConfig, device: torch.device):
        self._optim = optim
        self._first_bad = torch.zeros(2, device=device)
        """Its number (0: none so far) and its norm."""

    def note(self, norm: Tensor, step: int) -> None:
        """Take the norm of a step; nothing is read on the host."""
        now = torch.stack([torch.full_like(norm, step), norm])
        is_first = ~norm.isfinite() & (self._first_bad[0] == 0)
        self._first_bad = torch.where(is_first, now, self._first_bad)

    def check(self) -> None:
        """Raise TrainingDiverged if a step was bad: before anything is logged or saved."""
        step, norm = self._first_bad.tolist()
        if step:
            raise TrainingDiverged.of(
                f"step {step:.0f}: the gradient norm is {norm}",
                "an update with it would destroy the weights, so none was made",
                "branch from a checkpoint with a lower rate: run_dir=ANOTHER_FOLDER "
                f"checkpoint.init_from=CHECKPOINT optim.lr={self._optim.lr / 2:g}",
            )
