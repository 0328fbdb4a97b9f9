"""RMSNorm in plain PyTorch, for the layers that Transformer Engine does not provide."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from loopcoder.ops.rms_norm import rms_norm


class RMSNorm(torch.nn.Module):
    """x / rms(x) * weight over the last dimension.

    megatron-core's own PyTorch norm refuses sequence parallelism. The mark on the weight is all
    that it takes: each rank sees its part of the sequence, and finalize_model_grads sums marked
    gradients over the tp ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = _weight(config, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class NormWeight(torch.nn.Module):
    """The weight of an RMSNorm that an operator applies together with what follows it.

    Calling it gives the weight. Reading the weight off it would pass by the hooks with which
    megatron-core's overlapped optimizer waits for gathered parameters.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int):
        super().__init__()
        self.weight = _weight(config, hidden_size)

    def forward(self) -> Tensor:
        return self.weight


def _weight(config: TransformerConfig, hidden_size: int) -> torch.nn.Parameter:
    weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
    weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return weight
