"""What is measured of the loops while the model runs; nothing of it changes the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from loopcoder.config.schema import Config

ReadOut = Callable[[Tensor, Tensor | None], Tensor]
"""The head: it maps a loop's output after the final norm [S, B, D] to logits, or with labels to the
loss of every token [B, S]."""


class Probe:
    """What the model calls in every loop, on the stage that has what it hands over. This one
    measures nothing."""

    def at_input(self, loop_idx: int, hidden: Tensor) -> None:
        """Take a loop's input, which is E in loop 0. [S or S/tp, B, D]"""

    def at_attention(
        self,
        loop_idx: int,
        layer: int,
        q: Tensor,
        k: Tensor,
        shared_k: Tensor | None,
        gate: Tensor | None,
    ) -> None:
        """Take what a layer (0-based, in the model) attends with; once, also where the backward
        pass computes it again.

        Args:
            q: queries after RoPE. [S, B, heads of this rank, head_dim]
            k: this loop's own keys after RoPE. [S, B, kv_heads of this rank, head_dim]
            shared_k: loop 0's keys, in later loops that read them; like k.
            gate: weight of the attention to them, from 0 to 1. [S, B, heads of this rank]
        """

    def at_output(
        self,
        loop_idx: int,
        raw: Tensor,
        normed: Tensor,
        labels: Tensor | None,
        read_out: ReadOut,
        read: Tensor | None,
    ) -> None:
        """Take a loop's output.

        Args:
            raw: the residual stream after the last layer. [S or S/tp, B, D]
            normed: the same after the final norm. [S or S/tp, B, D]
            read_out: the head.
            read: what it gave for `normed` and `labels`, where the model has read this loop itself.
        """


@contextmanager
def observed(layers: Any, loop_idx: int, probe: Probe | None) -> Iterator[None]:
    """Let a probe see the attention of some layers in a loop, for the time of the block."""
    if probe is None:
        yield
        return
    attentions = {layer.layer_number - 1: layer.self_attention for layer in layers}
    for number, attention in attentions.items():
        attention.observer = partial(probe.at_attention, loop_idx, number)
    try:
        yield
    finally:
        for attention in attentions.values():
            attention.observer = None


def probe_of(config: Config, device: torch.device) -> LoopProbe | None:
    """Return what measures the loops in a logged step; None: nothing is asked for."""
    log = config.logging
    if not (log.loop_losses or log.loop_gradients):
        return None
    loops = config.model.num_loops
    return LoopProbe(loops, device, losses=log.loop_losses, gradients=log.loop_gradients)


class LoopProbe(Probe):
    """What each loop does in a training step: its loss through the head, and the gradient at its
    input.

    Sums of one step on this rank, by loop; the model calls it, `train.step` reduces it.

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
        raw: Tensor,
        normed: Tensor,
        labels: Tensor | None,
        read_out: ReadOut,
        read: Tensor | None,
    ) -> None:
        """Record the loss after a loop; the last loop's loss is the model's own."""
        if self.reads_losses and loop_idx < self.sums.shape[1] - 1:
            assert self.loss_mask is not None
            with torch.no_grad():
                loss = read_out(normed, labels) if read is None else read
                self.sums[0, loop_idx] += (loss * self.loss_mask).sum()

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
