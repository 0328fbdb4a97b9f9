"""One looped transformer layer, and the stack of them that a loop runs through."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from megatron.core.fp8_utils import get_fp8_context
from megatron.core.tensor_parallel.random import checkpoint, get_cuda_rng_tracker
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from loopcoder.model.documents import Documents
from loopcoder.model.shared_kv import KV, SharedKV


class PLTLayer(TransformerLayer):
    """Pre-norm attention and SwiGLU; hands the residual stream to the attention's gate."""

    def forward(
        self, hidden: Tensor, shared: KV | None, docs: Documents, rope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run one layer in one loop.

        Args:
            hidden: [S or S/tp, B, D]
            shared: loop 0's K/V of this layer, or None where the loop attends to its own only.

        Returns:
            hidden [S or S/tp, B, D] and this loop's own keys and values. The layer is a pure
            function of its
            arguments, which is what makes recomputing it safe in every loop.
        """
        attended, (k, v) = self.self_attention(
            self.input_layernorm(hidden), hidden, shared, docs, rope
        )
        hidden = hidden + attended
        transformed, _ = self.mlp(self.pre_mlp_layernorm(hidden))
        return hidden + transformed, k, v


class PLTBlock(TransformerBlock):
    """The layers of one pipeline stage; every loop runs through the same ones."""

    def forward(
        self,
        hidden: Tensor,
        loop_idx: int,
        shared_kv: SharedKV | None,
        docs: Documents,
        rope: Tensor,
    ) -> Tensor:
        """Run one loop.

        Args:
            hidden: the loop's input. [S or S/tp, B, D]
            loop_idx: 0 fills `shared_kv`, later loops read it.
            shared_kv: None where every loop attends to its own K/V only.

        Returns:
            the residual stream after the last layer, before the final norm. [S or S/tp, B, D]
        """
        with self._fp8_context(None):
            for index, layer in enumerate(self.layers):
                shared = shared_kv.of(index) if shared_kv is not None and loop_idx > 0 else None
                with self._fp8_context(layer):
                    hidden, k, v = self._run(layer, hidden, shared, docs, rope)
                if shared_kv is not None and loop_idx == 0:
                    shared_kv.keep(index, (k, v))
        return hidden

    def _run(
        self,
        layer: torch.nn.Module,
        hidden: Tensor,
        shared: KV | None,
        docs: Documents,
        rope: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.config.recompute_granularity != "full" or not torch.is_grad_enabled():
            return layer(hidden, shared, docs, rope)

        # K/V go in and come out as arguments: a tensor captured by the closure would lose its
        # gradient.
        def run(hidden: Tensor, *kv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return layer(hidden, kv or None, docs, rope)

        if self.config.fp8:
            from megatron.core.extensions.transformer_engine import te_checkpoint

            return te_checkpoint(
                run, False, get_cuda_rng_tracker, self.tp_group, hidden, *(shared or ())
            )
        return checkpoint(run, False, hidden, *(shared or ()))

    def _fp8_context(self, layer: Any) -> AbstractContextManager[Any]:
        """Delayed scaling wants one context around all layers (`layer` None), other recipes one a
        layer."""
        around_all = self.config.fp8_recipe == "delayed"
        if not self.config.fp8 or around_all != (layer is None):
            return nullcontext()
        return get_fp8_context(self.config, -1 if layer is None else layer.layer_number - 1)
