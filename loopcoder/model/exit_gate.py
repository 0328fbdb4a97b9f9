"""The gate of the learned exit distribution: how likely a token is read after a loop."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class ExitGate(MegatronModule):
    """<w, h> + c on a loop's normed output: the logit of lambda (arXiv 2510.25741). All loops share
    it, and it starts at zero: lambda = 1/2.

    As the losses are, its logits are whole on every tensor-parallel rank. Where the sequence is
    split each rank computes those of its part; what follows is the same on all ranks, so that the
    gradient of a part is that of these logits alone, and nothing is to be added up.
    """

    def __init__(self, config: TransformerConfig, tp_group: Any):
        super().__init__(config)
        self.tp_group = tp_group
        dtype = config.params_dtype
        self.weight = torch.nn.Parameter(torch.zeros(1, config.hidden_size, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.zeros(1, dtype=dtype))
        for parameter in (self.weight, self.bias):
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, normed: Tensor) -> Tensor:
        """Map h [S or S/tp, B, D] to logits [B, S] in fp32."""
        logits = F.linear(normed, self.weight, self.bias)
        if self.config.sequence_parallel:
            logits = gather_from_sequence_parallel_region(
                logits, tensor_parallel_output_grad=False, group=self.tp_group
            )
        return logits.squeeze(-1).transpose(0, 1).float()
