"""Random weights for tests, and those of a model under the released model's names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loopcoder.config.schema import ModelConfig
from loopcoder.hf.mapping import to_released

if TYPE_CHECKING:
    from loopcoder.model.plt import PLTModel


def named(network: PLTModel, model: ModelConfig, grad: bool = False) -> dict[str, Tensor]:
    """Return the weights (or their gradients) of a one-process model under the released names, in
    float64."""
    parameters = dict(network.named_parameters())
    tensors = {n: (p.grad if grad else p.data).double() for n, p in parameters.items()}
    return released(tensors, model)


def released(tensors: dict[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Return tensors under the released names, and those of an exit gate, which has none there."""
    own = {n: x for n, x in tensors.items() if n.startswith("exit_gate.")}
    return to_released(tensors, model) | own


def randomise(network: PLTModel, generator: torch.Generator) -> None:
    """Draw every weight anew, norms around 1 and gates well off their zero start, so that nothing
    hides."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
