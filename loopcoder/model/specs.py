"""Which modules a layer is made of: plain PyTorch or Transformer Engine, with one set of checkpoint
names."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_submodules,
    get_gpt_layer_with_transformer_engine_submodules,
)
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import is_te_min_version

from loopcoder.config.schema import Config, ModelConfig, PrecisionConfig
from loopcoder.model.attention import PLTAttention, TECoreAttention, TorchCoreAttention
from loopcoder.model.layer import PLTLayer
from loopcoder.model.linear import ColumnLinear, RowLinear, SwiGLUMLP
from loopcoder.model.norm import RMSNorm
from loopcoder.ops import weight_gradient

_FP8: dict[str, dict[str, Any]] = {
    "fp8_tensorwise": dict(fp8="hybrid", fp8_recipe="tensorwise"),
    "fp8_delayed": dict(fp8="hybrid", fp8_recipe="delayed"),
    "fp8_blockwise": dict(fp8="e4m3", fp8_recipe="blockwise"),
}


def transformer_config(config: Config) -> TransformerConfig:
    """Translate our config into megatron-core's.

    `precision.name` and `model.layer_spec` must be resolved (not auto).
    """
    model, parallel, precision = config.model, config.parallel, config.precision.name
    te = model.layer_spec == "te"
    if te:
        weight_gradient.provide()
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    recomputes: dict[str, dict[str, Any]] = {
        "none": {},
        "selective": dict(recompute_granularity="selective", recompute_modules=["core_attn"]),
        "full": dict(
            recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1
        ),
    }
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_kv_heads,
        kv_channels=model.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        tensor_model_parallel_size=parallel.tp,
        pipeline_model_parallel_size=parallel.pp,
        context_parallel_size=parallel.cp,
        sequence_parallel=parallel.sp,
        deterministic_mode=config.train.deterministic,
        # The loss contract: a sum over valid tokens over their number in the whole global batch.
        calculate_per_token_loss=True,
        # Weights are drawn by model/init.py, the same in every layout.
        perform_initialization=False,
        use_cpu_initialization=not torch.cuda.is_available(),
        bias_activation_fusion=te,
        apply_rope_fusion=te,
        cross_entropy_loss_fusion=te,
        # Transformer Engine's lost precision in the gradient before 2.20 (its #3193, #3273).
        cross_entropy_fusion_impl="te" if te and is_te_min_version("2.20.0") else "native",
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        # Weight gradients go straight into the fp32 main gradient (weight_gradient.provide).
        gradient_accumulation_fusion=te,
        **recomputes[parallel.recompute],
        **_fp8(config.precision),
    )


def _fp8(precision: PrecisionConfig) -> dict[str, Any]:
    recipe = _FP8.get(precision.name, {})
    start, end = precision.bf16_layers_at_start, precision.bf16_layers_at_end
    if not recipe or not (start or end):
        return recipe
    return recipe | dict(
        first_last_layers_bf16=True,
        num_layers_at_start_in_bf16=start,
        num_layers_at_end_in_bf16=end,
    )


def block_submodules(model: ModelConfig, num_layers: int) -> TransformerBlockSubmodules:
    """Return the modules of the `num_layers` layers that a pipeline stage builds."""
    norm: Any
    core: Any
    if model.layer_spec == "te":
        from megatron.core.extensions.transformer_engine import TENorm

        norm, core = TENorm, TECoreAttention
        layer = get_gpt_layer_with_transformer_engine_submodules()
    else:
        norm, core = RMSNorm, TorchCoreAttention
        layer = get_gpt_layer_local_submodules(normalization="RMSNorm")
        layer.input_layernorm = layer.pre_mlp_layernorm = norm
        mlp = MLPSubmodules(linear_fc1=ColumnLinear, linear_fc2=RowLinear)
        layer.mlp = partial(SwiGLUMLP.as_mlp_submodule, submodules=mlp)
        whole = layer.self_attention.submodules
        whole.linear_qkv, whole.linear_proj = ColumnLinear, RowLinear
    attention = layer.self_attention.submodules
    attention.core_attention = partial(core, window=model.window)
    attention.q_layernorm = attention.k_layernorm = None
    layer.self_attention = ModuleSpec(
        module=PLTAttention,
        submodules=attention,
        params=dict(
            attn_mask_type=AttnMaskType.causal,
            has_gate=model.has_gates,
            gate=model.gate,
            kernels=model.kernels,
        ),
    )
    spec = ModuleSpec(module=PLTLayer, submodules=layer)
    return TransformerBlockSubmodules(layer_specs=[spec] * num_layers, layer_norm=norm)
