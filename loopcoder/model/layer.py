"""One looped transformer layer, and the stack of them that a loop runs through."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from megatron.core.dist_checkpointing.utils import replace_prefix_for_sharding
from megatron.core.fp8_utils import get_fp8_context
from megatron.core.tensor_parallel.random import checkpoint, get_cuda_rng_tracker
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.transformer.utils import sharded_state_dict_default
from torch import Tensor

from loopcoder.model.documents import Documents
from loopcoder.model.reuse import in_loop
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
            function of its arguments, which is what makes recomputing it safe in every loop.
        """
        attended, (k, v) = self.self_attention(
            self.input_layernorm(hidden), hidden, shared, docs, rope
        )
        hidden = hidden + attended
        transformed, _ = self.mlp(self.pre_mlp_layernorm(hidden))
        return hidden + transformed, k, v


class PLTBlock(TransformerBlock):
    """The layers of one pipeline stage; every loop runs through the same ones."""

    def __init__(self, config: TransformerConfig, spec: Any, parts: list[list[int]], **kwargs: Any):
        """
        Args:
            parts: the layers (0-based, in the model) of each part of a loop on this stage.
        """
        self.layer_numbers = [layer for part in parts for layer in part]
        ends = list(itertools.accumulate(len(part) for part in parts))
        self.parts = [range(end - len(part), end) for end, part in zip(ends, parts, strict=True)]
        super().__init__(config, spec, **kwargs)

    def _build_layers(self) -> None:
        """Build this stage's layers under their numbers in the model, which need not be
        contiguous."""
        layers = []
        for number, spec in zip(self.layer_numbers, self.submodules.layer_specs, strict=True):
            with get_fp8_context(self.config, number, is_init=True):
                layers.append(
                    build_module(
                        spec,
                        config=self.config,
                        layer_number=number + 1,
                        add_layer_offset=False,
                        pg_collection=self.pg_collection,
                    )
                )
        self.layers = torch.nn.ModuleList(layers)
        self.final_layernorm: Any = None
        if self.post_process:
            self.final_layernorm = self.submodules.layer_norm(
                config=self.config,
                hidden_size=self.config.hidden_size,
                eps=self.config.layernorm_epsilon,
            )

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> Any:
        """Name layers by their number in the model, so that any split over stages loads any
        other."""
        out: dict[str, Any] = {}
        for index, layer in enumerate(cast(list[Any], self.layers)):
            here, everywhere = f"{prefix}layers.{index}.", f"{prefix}layers."
            offset = [(0, layer.layer_number - 1, self.config.num_layers)]
            shards = layer.sharded_state_dict(here, offset, metadata)
            replace_prefix_for_sharding(shards, here, everywhere)
            out |= shards
        if self.final_layernorm is not None:
            out |= sharded_state_dict_default(
                self.final_layernorm, f"{prefix}final_layernorm.", (), metadata, self.tp_group
            )
        return out

    def forward(
        self,
        hidden: Tensor,
        loop_idx: int,
        shared_kv: SharedKV | None,
        docs: Documents,
        rope: Tensor,
        part: int,
    ) -> Tensor:
        """Run one part of a loop, which is all of it where `parts` has one.

        Args:
            hidden: input of the part's first layer. [S or S/tp, B, D]
            loop_idx: 0 fills `shared_kv`, later loops read it.
            shared_kv: None where every loop attends to its own K/V only.

        Returns:
            the residual stream after its last layer, before the final norm. [S or S/tp, B, D]
        """
        with self._fp8_context(None):
            for index in self.parts[part]:
                layer = self.layers[index]
                shared = shared_kv.of(index) if shared_kv is not None and loop_idx > 0 else None
                with self._fp8_context(layer):
                    hidden, k, v = self._run(in_loop(layer, loop_idx), hidden, shared, docs, rope)
                if shared_kv is not None and loop_idx == 0:
                    hidden = shared_kv.keep(index, hidden, (k, v))
        return hidden

    def _run(
        self,
        layer: Callable[..., Any],
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
