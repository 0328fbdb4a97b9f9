"""megatron-core's linear layers and MLP for the layers that plain PyTorch runs.

Names and shards are megatron-core's, and so is the computation of weights that are split, or whose
gradients are added to the main ones within their product. Any other weight takes PyTorch's own
product in place of an autograd function in Python, which with its communication of nothing costs as
much as the product of a small model.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP
from torch import Tensor

from loopcoder.ops.swiglu import swiglu


class ColumnLinear(ColumnParallelLinear):
    """A linear layer without bias, split by its output over tensor-parallel ranks."""

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Map [S or S/tp, B, in] to [S, B, out of this rank], and None: there is no bias."""
        if self.tp_group.size() > 1 or self.gradient_accumulation_fusion:
            return super().forward(input_, *args, **kwargs)
        return F.linear(input_, self.weight), None


class RowLinear(RowParallelLinear):
    """A linear layer without bias, split by its input over tensor-parallel ranks."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map [S, B, in of this rank] to [S or S/tp, B, out], and None: there is no bias."""
        if self.tp_group.size() > 1 or self.gradient_accumulation_fusion:
            return super().forward(input_)
        return F.linear(input_, self.weight), None


class SwiGLUMLP(MLP):
    """An MLP with SwiGLU."""

    def forward(
        self, hidden_states: Tensor, per_token_scale: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Map [S or S/tp, B, D] to the same, and None: there is no bias."""
        if per_token_scale is not None:
            raise NotImplementedError("only experts scale tokens")
        inner, _bias = self.linear_fc1(hidden_states)
        return self.linear_fc2(swiglu(inner))
