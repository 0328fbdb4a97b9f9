"""What the objective came to in a step, beside the last loop's loss: its value, and what each loop
has in it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from loopcoder.config.schema import Config
from loopcoder.model.objective import parts
from loopcoder.model.probe import LoopProbe, probe_of
from loopcoder.model.step_objective import StepObjective, step_objective


class ObjectiveSums:
    """Sums over the valid tokens of a step on this rank; `train.step` reduces them."""

    def __init__(self, objective: StepObjective, device: torch.device):
        self._objective = objective
        self.sums = torch.zeros(3, len(objective.read_loops), device=device)
        """Losses and shares of the loops that are read; and the objective, then the entropy of the
        shares. [3, loops]"""

    def add(self, output: Tensor, mask: Tensor) -> None:
        """Add a microbatch: the output of a model with this objective, and 1 where a token counts
        [B, S]."""
        objective, losses, shares = parts(output.detach())
        self.sums[0] += (losses * mask).sum((1, 2))
        self.sums[1] += (shares * mask).sum((1, 2))
        self.sums[2, 0] += (objective * mask).sum()
        if self._objective.exit_entropy is not None and len(shares) > 1:
            self.sums[2, 1] -= (torch.special.xlogy(shares, shares).sum(0) * mask).sum()

    def fields(self, tokens: float) -> dict[str, float]:
        """Return the fields of a metrics line, from reduced sums and the number of valid tokens."""
        losses, shares, (value, *entropy) = (self.sums / tokens).tolist()
        read = self._objective.read_loops
        fields = {"objective": value}
        fields |= {f"loss/loop{r}": loss for r, loss in zip(read, losses, strict=True)}
        if self._objective.exit_entropy is not None:
            fields |= {f"exit/loop{r}": share for r, share in zip(read, shares, strict=True)}
            fields["exit/entropy"] = entropy[0] if entropy else 0.0
        return fields


def probes_of(
    config: Config, loops: int, device: torch.device
) -> tuple[LoopProbe | None, ObjectiveSums | None]:
    """Return what measures the loops of a logged step that runs `loops` of them; None for what is
    not asked for, or not there to be measured."""
    running = replace(config, model=replace(config.model, num_loops=loops))
    objective = step_objective(config.objective, config.model.num_loops, loops)
    by_loop = ObjectiveSums(objective, device) if objective.sums_loops else None
    return probe_of(running, device), by_loop
