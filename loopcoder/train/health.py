"""Whether the steps were good, remembered on the device until somebody needs to know."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from loopcoder.config.faults import FaultsConfig
from loopcoder.data.loader import StepData
from loopcoder.errors import TrainingDiverged, counted

Kind = Literal["not finite", "spike"]
_KINDS: tuple[Kind, ...] = ("not finite", "spike")


@dataclass(frozen=True)
class Trouble:
    """Steps in a row that were bad, as many as a run puts up with."""

    kind: Kind
    first: int
    last: int

    def __str__(self) -> str:
        what = "the loss or gradient is not finite"
        if self.kind == "spike":
            what = "the loss is above its mean by faults.spike_nats"
        number = counted(self.last - self.first + 1, "step")
        return f"step {self.last}: {what}, for {number} in a row"


@dataclass(frozen=True)
class BadStep:
    """A step that did not change the weights, and what it was trained on."""

    step: int
    loss: float
    grad_norm: float
    stage: int
    sample: int
    """The first of its samples, in the data stage."""
    samples: int

    def fields(self) -> dict[str, Any]:
        """Return the fields of its event."""
        return vars(self)


class Health:
    """Remembers loss and gradient norm of every step on the device, and judges them when asked."""

    def __init__(self, faults: FaultsConfig, device: torch.device):
        self._faults, self._device = faults, device
        self._noted: list[tuple[int, int, int, int]] = []
        """Step, stage, first sample and samples."""
        self._values: list[Tensor] = []
        """Mean loss and norm of each. [2]"""
        self._losses: deque[float] = deque(maxlen=faults.spike_window)
        """Of the newest good steps of one data stage."""
        self._stage = 0
        self._in_a_row: dict[Kind, list[int]] = {kind: [] for kind in _KINDS}
        self.is_suspicious = False
        """The newest steps were bad, and not yet as many as the run puts up with."""
        self.bad: list[BadStep] = []
        """Those that `check` found, until somebody takes them."""

    def note(self, data: StepData, sums: Tensor, norm: Tensor) -> None:
        """Take sums of the loss [2, domains] and norm [] of a step; nothing is read on the host."""
        before = data.before
        self._noted.append((data.after.step, before.stage, before.sample, data.size))
        loss = sums[0].sum() / sums[1].sum().clamp(min=1.0)
        self._values.append(torch.stack([loss, norm]))

    def check(self) -> Trouble | None:
        """Judge the steps since the last call, as rank 0 does; all ranks call it, before anything
        is logged or saved."""
        trouble = None
        for judged in self._judge():
            trouble = trouble or judged
        self.is_suspicious = any(self._in_a_row.values())
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return trouble
        kind = 0 if trouble is None else 1 + _KINDS.index(trouble.kind)
        first, last = (trouble.first, trouble.last) if trouble else (0, 0)
        said = torch.tensor([kind, first, last, self.is_suspicious], device=self._device)
        dist.broadcast(said, 0)
        kind, first, last, suspicious = said.tolist()
        self.is_suspicious = bool(suspicious)
        return Trouble(_KINDS[kind - 1], first, last) if kind else None

    def taken(self) -> Iterator[BadStep]:
        """Yield the bad steps that `check` found, once."""
        while self.bad:
            yield self.bad.pop(0)

    def _judge(self) -> Iterator[Trouble | None]:
        values = torch.stack(self._values).tolist() if self._values else []
        for (step, stage, sample, samples), (loss, norm) in zip(self._noted, values, strict=True):
            if stage != self._stage:  # another mixture has another loss
                self._losses.clear()
                self._stage = stage
            is_bad = not (math.isfinite(loss) and math.isfinite(norm))
            if is_bad:
                self.bad.append(BadStep(step, loss, norm, stage, sample, samples))
            yield self._count("not finite", step, self._faults.bad_steps, is_bad)
            is_above = self._is_spike(loss)
            if not is_bad:
                yield self._count("spike", step, self._faults.spike_steps, is_above)
            if not is_bad and not is_above:
                self._losses.append(loss)
        self._noted, self._values = [], []

    def _count(self, kind: Kind, step: int, most: int, is_bad: bool) -> Trouble | None:
        if not is_bad:
            self._in_a_row[kind].clear()
            return None
        self._in_a_row[kind].append(step)
        first = self._in_a_row[kind][0]
        return Trouble(kind, first, step) if len(self._in_a_row[kind]) >= most else None

    def _is_spike(self, loss: float) -> bool:
        above, losses = self._faults.spike_nats, self._losses
        if above is None or len(losses) < self._faults.spike_window:
            return False
        return loss > sum(losses) / len(losses) + above


def diverged(trouble: Trouble, lr: float, also: str = "") -> TrainingDiverged:
    """Return the error of a run that stops for good; `also` is why it does not go back."""
    why = "no bad step changed the weights, and the next ones would be bad as well"
    if trouble.kind == "spike":
        why = "a loss that does not come down again is no training"
    return TrainingDiverged.of(
        str(trouble),
        f"{why}{also}",
        "branch from a checkpoint with a lower rate: run_dir=ANOTHER_FOLDER "
        f"checkpoint.init_from=CHECKPOINT optim.lr={lr / 2:g}",
    )
