"""What each loop does during a training step: its loss through the head, and the gradient at its
input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from loopcoder.config.schema import Config


def probe_of(config: Config, device: torch.device) -> LoopProbe | None:
    """Return what measures the loops in a logged step; None: nothing is asked for."""
    log = config.logging
    if not (log.loop_losses or log.loop_gradients):
        return None
    loops = config.model.num_loops
    return LoopProbe(loops, device, losses=log.loop_losses, gradients=log.loop_gradients)


class LoopProbe:
    """Sums of one step on this rank, by loop; the model calls it, `train.step` reduces it.

    Looped training is known to explode through the loops: the gradient at the input of an early
    loop then grows while the one at the last loop stays.
    """

    def __init__(self, num_loops: int, device: torch.device, *, losses: bool, gradients: bool):
        """
        Args:
            losses: read the head after every loop (logit lens): R-1 more heads, forward only.
            gradients: sum the squares of the gradient at every loop's input.
        """
        self.reads_losses, self.reads_gradients = losses, gradients
        self.sums = torch.zeros(2, num_loops, device=device)
        """Summed loss, and summed squares of the gradient of the summed loss. [2, R]"""
        self.loss_mask: Tensor | None = None
        """Tokens of the microbatch at work that count in the loss. [B, S]"""

    def at_input(self, loop_idx: int, hidden: Tensor) -> None:
        """Measure the gradient that will reach a loop's input. [S, B, D]"""
        if self.reads_gradients:
            hidden.register_hook(partial(self._add_gradient, loop_idx))

    def at_output(
        self,
        loop_idx: int,
        normed: Tensor,
        labels: Tensor | None,
        read_out: Callable[[Tensor, Tensor | None], Tensor],
    ) -> None:
        """Record the loss after a loop; the last loop's loss is the caller's return value.

        Args:
            normed: the loop's output after the final norm. [S, B, D]
            read_out: the head; it maps `normed` and `labels` to the loss of every token [B, S].
        """
        if self.reads_losses and loop_idx < self.sums.shape[1] - 1:
            assert self.loss_mask is not None
            with torch.no_grad():
                self.sums[0, loop_idx] += (read_out(normed, labels) * self.loss_mask).sum()

    def _add_gradient(self, loop_idx: int, gradient: Tensor) -> None:
        self.sums[1, loop_idx] += torch.linalg.vector_norm(gradient, dtype=torch.float32).square()

    def fields(self, tokens: float) -> dict[str, float]:
        """Return the fields of a metrics line, from reduced sums and the number of valid tokens."""
        losses, squares = self.sums.tolist()
        fields: dict[str, float] = {}
        if self.reads_losses:
            fields |= {f"loss/loop{r}": x / tokens for r, x in enumerate(losses)}
        if self.reads_gradients:
            fields |= {f"grad_norm/loop{r}": x**0.5 / tokens for r, x in enumerate(squares)}
        return fields
