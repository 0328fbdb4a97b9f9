"""Self-attention of a looped layer: causal in loop 0, a gated pair of attentions in later loops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from megatron.core.jit import jit_fuser
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.random import checkpoint
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from loopcoder.model.documents import Documents
from loopcoder.model.gate import GATES
from loopcoder.model.shared_kv import KV
from loopcoder.ops import kernels as cuda
from loopcoder.ops.gated_window import attention, gated_mixture
from loopcoder.ops.rotary import rotated_heads


class PLTAttention(SelfAttention):
    """megatron-core's self-attention with loops.

    The projections, their tensor parallelism and checkpoint names are megatron's; only what happens
    between them is ours. It has a gate exactly where a later loop mixes two attentions: with R = 1
    or with `kv_sharing=own` no gate parameter exists, since one without a gradient breaks
    overlapped reduction.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: SelfAttentionSubmodules,
        layer_number: int,
        *,
        has_gate: bool,
        gate: str,
        kernels: str,
        **kwargs: Any,
    ):
        super().__init__(config, submodules, layer_number, **kwargs)
        self.uses_cuda_kernels = kernels == "cuda" and has_gate
        if self.uses_cuda_kernels:
            cuda.load()
        self.plt_gate = (
            GATES[gate](config, self.tp_group, uses_cuda_kernels=self.uses_cuda_kernels)
            if has_gate
            else None
        )
        self.observer: Callable[..., None] | None = None
        """Gets what is attended with; see `probe.Probe.at_attention`."""

    def forward(
        self, normed: Tensor, residual: Tensor, shared: KV | None, docs: Documents, rope: Tensor
    ) -> tuple[Tensor, KV]:
        """Attend, and return the output and this loop's own keys and values.

        Args:
            normed: input of the projections. The torch spec norms it beforehand; in the
                Transformer Engine spec the norm is fused into them and this is h itself.
                [S or S/tp, B, D]
            residual: h, the residual stream before RMSNorm_in, which the gate reads. [S or S/tp,
                B, D]
            shared: loop 0's (K, V) after RoPE; None in loop 0 and wherever a loop has only its own.
            rope: from `PLTModel.rope`.

        Returns:
            output [S or S/tp, B, D], and (K, V), each [S, B, kv_heads of this rank, head_dim]
        """
        q, k, v = self._heads(normed, docs, rope)
        mix: Callable[..., Tensor] = self._causal
        inputs: tuple[Tensor, ...] = (q, k, v)
        if shared is not None:
            assert self.plt_gate is not None, "shared K/V need a gate"
            mix, inputs = self._gated, (self.plt_gate(residual, q), q, k, v, *shared)
        if self.observer is not None:
            self._show(self.observer, q, k, shared, inputs[0])
        if self.checkpoint_core_attention and torch.is_grad_enabled():
            mixed = checkpoint(lambda *tensors: mix(docs, *tensors), False, *inputs)
        else:
            mixed = mix(docs, *inputs)
        output, _ = self.linear_proj(mixed.flatten(2))
        return output, (k, v)

    def _heads(self, normed: Tensor, docs: Documents, rope: Tensor) -> tuple[Tensor, ...]:
        """Return q, k and v, positions applied, each [S, B, heads or kv_heads, head_dim]."""
        core: TorchCoreAttention | TECoreAttention = self.core_attention
        if isinstance(core, TorchCoreAttention):
            projected, _ = self.linear_qkv(normed)
            heads = self.num_attention_heads_per_partition // self.num_query_groups_per_partition
            shape = self.num_query_groups_per_partition, heads + 2, -1
            return rotated_heads(projected.unflatten(-1, shape), rope)
        q, k, v = cast(
            tuple[Tensor, Tensor, Tensor], self.get_query_key_value_tensors(normed, None)
        )
        return core.rotate(q, rope, docs), core.rotate(k, rope, docs), v

    def _show(
        self,
        observer: Callable[..., None],
        q: Tensor,
        k: Tensor,
        shared: KV | None,
        gate_logits: Tensor,
    ) -> None:
        if shared is None:
            observer(q, k, None, None)
            return
        exact = torch.promote_types(gate_logits.dtype, torch.float32)
        observer(q, k, shared[0], torch.sigmoid(gate_logits.detach().to(exact)))

    def _causal(self, docs: Documents, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.core_attention.causal(q, k, v, docs)

    def _gated(
        self,
        docs: Documents,
        gate_logits: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k0: Tensor,
        v0: Tensor,
    ) -> Tensor:
        if self.uses_cuda_kernels:
            attend = partial(self.core_attention.causal, docs=docs)
            start = docs.start.contiguous() if docs.is_packed else None
            window = self.core_attention.window
            return cuda.gated_attention(attend, gate_logits, q, k, v, (k0, v0), start, window)
        global_out = self.core_attention.causal(q, k0, v0, docs)
        window_out = self.core_attention.windowed(q, k, v, docs)
        return self.core_attention.mix(gate_logits, global_out, window_out)


class TorchCoreAttention(torch.nn.Module):
    """Attention through torch's scaled_dot_product_attention, with masks for windows and
    documents."""

    def __init__(self, config: TransformerConfig, window: int, **_: Any):
        super().__init__()
        self.config, self.window = config, window
        self.mix = gated_mixture

    def causal(self, q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> Tensor:
        """Attend to all keys s <= t of the document. [S, B, heads, head_dim]"""
        return attention(q, k, v, docs.causal_bias(q.dtype))

    def windowed(self, q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> Tensor:
        """Attend to keys t-window <= s <= t of the document. [S, B, heads, head_dim]"""
        return attention(q, k, v, docs.window_bias(self.window, q.dtype))


class TECoreAttention(torch.nn.Module):
    """Attention through Transformer Engine (cuDNN or FlashAttention).

    Packed documents use its variable-length format: rows are laid end to end and borders come as
    cu_seqlens, so no mask is ever built.
    """

    def __init__(self, config: TransformerConfig, window: int, pg_collection: Any, **kwargs: Any):
        super().__init__()
        from megatron.core.extensions.transformer_engine import TEDotProductAttention

        self.config, self.window, self.groups = config, window, pg_collection
        self.mix = jit_fuser(gated_mixture)  # one kernel each way instead of a dozen
        windowed = copy.copy(config)
        windowed.window_size = (window, 0)
        self.full = TEDotProductAttention(config, pg_collection=pg_collection, **kwargs)
        self.local = TEDotProductAttention(windowed, pg_collection=pg_collection, **kwargs)

    def rotate(self, x: Tensor, rope: Tensor, docs: Documents) -> Tensor:
        """Apply RoPE to [S, B, heads, head_dim]; positions restart at each document."""
        if not docs.is_packed:
            return apply_rotary_pos_emb(x, rope, self.config)
        ends = apply_rotary_pos_emb(
            _rows_end_to_end(x),
            rope,
            self.config,
            cu_seqlens=docs.cu_seqlens,
            cp_group=self.groups.cp,
        )
        return _rows_apart(ends, x.shape[1])

    def causal(self, q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> Tensor:
        """Attend to all keys s <= t of the document. [S, B, heads, head_dim]"""
        return self._attend(self.full, q, k, v, docs)

    def windowed(self, q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> Tensor:
        """Attend to keys t-window <= s <= t of the document. [S, B, heads, head_dim]"""
        return self._attend(self.local, q, k, v, docs)

    def _attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> Tensor:
        if not docs.is_packed:
            return module(q, k, v, None, AttnMaskType.causal).view(q.shape)
        packed = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=docs.cu_seqlens,
            cu_seqlens_kv=docs.cu_seqlens,
            max_seqlen_q=docs.max_seqlen,
            max_seqlen_kv=docs.max_seqlen,
        )
        q_ends, k_ends, v_ends = (_rows_end_to_end(x) for x in (q, k, v))
        out = module(
            q_ends, k_ends, v_ends, None, AttnMaskType.padding_causal, packed_seq_params=packed
        )
        return _rows_apart(out.view(q_ends.shape), q.shape[1])

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        """It has no weights, and its FP8 state must not put names of this spec into checkpoints."""
        return {}


def _rows_end_to_end(x: Tensor) -> Tensor:
    """[S, B, heads, head_dim] -> [B*S, heads, head_dim]; a view for B = 1."""
    return x.transpose(0, 1).reshape(-1, *x.shape[2:])


def _rows_apart(x: Tensor, batch: int) -> Tensor:
    """[B*S, heads, head_dim] -> [S, B, heads, head_dim]."""
    return x.view(batch, -1, *x.shape[1:]).transpose(0, 1)
