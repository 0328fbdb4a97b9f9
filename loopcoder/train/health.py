"""Whether the steps were good, remembered on the device until somebody needs to know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from loopcoder.config.schema import OptimConfig
from loopcoder.data.sampler import Position
from loopcoder.errors import TrainingDiverged


class Health:
    """Remembers, on the device, the first step whose gradient norm was not finite."""

    def __init__(self, optim: OptimConfig, device: torch.device):
        self._optim = optim
        self._first_bad = torch.zeros(2, device=device)
        """Its number (0: none so far) and its norm."""
        self._samples: dict[int, tuple[Position, int]] = {}
        """By step since the last check: where it began in the data, and its sequences."""

    def note(self, norm: Tensor, step: int, before: Position | None = None, size: int = 0) -> None:
        """Take the norm of a step; nothing is read on the host.

        Args:
            norm: Of its gradient; NaN where its loss was not finite. []
            step: Its number.
            before: Where it began in the data.
            size: Sequences of its global batch.
        """
        now = torch.stack([torch.full_like(norm, step), norm])
        is_first = ~norm.isfinite() & (self._first_bad[0] == 0)
        self._first_bad = torch.where(is_first, now, self._first_bad)
        if before is not None:
            self._samples[step] = before, size

    def check(self) -> None:
        """Raise TrainingDiverged if a step was bad: before anything is logged or saved."""
        step, norm = self._first_bad.tolist()
        if not step:
            self._samples.clear()
            return
        raise TrainingDiverged.of(
            f"step {step:.0f}: the gradient norm is {norm}",
            "an update with it would destroy the weights, so none was made",
            "branch from a checkpoint with a lower rate: run_dir=ANOTHER_FOLDER "
            f"checkpoint.init_from=CHECKPOINT optim.lr={self._optim.lr / 2:g}",
        )

    def bad_step(self) -> dict[str, Any]:
        """Return what to record of the first bad step: its number, and the stage, the first and the
        last of its samples."""
        step = int(self._first_bad[0])
        if step not in self._samples:
            return {"bad_step": step}
        before, size = self._samples[step]
        first, last = before.sample, before.sample + size - 1
        return {"bad_step": step, "stage": before.stage, "samples": [first, last]}
