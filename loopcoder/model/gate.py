"""The gate between the two attentions of a later loop: one logit a query head and token (plt.md
section 2)."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import scatter_to_tensor_model_parallel_region
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import all_to_all_sp2hp
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor

from loopcoder.model.norm import NormWeight
from loopcoder.ops import kernels as cuda
from loopcoder.ops.gate_logits import gate_logits


class HiddenGate(MegatronModule):
    """Wg RMSNorm_gate(h) + bg, where h is the residual stream before RMSNorm_in.

    Every tensor-parallel rank computes all heads for the tokens it has and keeps its own heads of
    all tokens: then `heads` numbers per token travel, not the `hidden_size` of h, and the weights
    are replicated.
    """

    def __init__(self, config: TransformerConfig, tp_group: Any, *, uses_cuda_kernels: bool):
        super().__init__(config)
        self.tp_group, self.uses_cuda_kernels = tp_group, uses_cuda_kernels
        heads, dtype = config.num_attention_heads, config.params_dtype
        self.gate_norm = NormWeight(config, config.hidden_size)
        self.weight = torch.nn.Parameter(torch.zeros(heads, config.hidden_size, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.zeros(heads, dtype=dtype))
        for parameter in (self.weight, self.bias):
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, residual: Tensor, query: Tensor) -> Tensor:
        """Map h [S or S/tp, B, D] to logits [S, B, heads of this rank]; `query` only gives their
        shape."""
        apply = cuda.GateLogits.apply if self.uses_cuda_kernels else gate_logits
        eps = self.config.layernorm_epsilon
        logits = apply(residual, self.gate_norm(), self.weight, self.bias, eps)
        if self.config.tensor_model_parallel_size == 1:
            return logits
        if self.config.sequence_parallel:
            return all_to_all_sp2hp(logits, group=self.tp_group).view(query.shape[:3])
        return scatter_to_tensor_model_parallel_region(logits, group=self.tp_group)


class QueryGate(MegatronModule):
    """<q_h, Wg_h> + bg_h on each query head after RoPE; heads are split over tensor-parallel
    ranks.

    It is PyTorch's either way: the queries are at hand, and there is no norm to fuse.
    """

    def __init__(self, config: TransformerConfig, tp_group: Any, *, uses_cuda_kernels: bool):
        super().__init__(config)
        self.tp_group = tp_group
        heads = config.num_attention_heads // config.tensor_model_parallel_size
        self.weight = torch.nn.Parameter(
            torch.zeros(heads, config.kv_channels, dtype=config.params_dtype)
        )
        self.bias = torch.nn.Parameter(torch.zeros(heads, dtype=config.params_dtype))
        for parameter in (self.weight, self.bias):
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=0, stride=1)

    def forward(self, residual: Tensor, query: Tensor) -> Tensor:
        """Map q [S, B, heads of this rank, head_dim] to logits [S, B, heads of this rank]."""
        return torch.einsum("sbhd,hd->sbh", query, self.weight) + self.bias

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: Any = None
    ) -> Any:
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0, "bias": 0},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=(metadata or {}).get("dp_cp_group"),
        )


GATES: dict[str, type[HiddenGate] | type[QueryGate]] = {"hidden": HiddenGate, "query": QueryGate}
