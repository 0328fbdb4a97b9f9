"""Move weights between the model's modules and the released model's names, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loopcoder.config.schema import ModelConfig

if TYPE_CHECKING:
    from loopcoder.model.plt import PLTModel


_TORCH_NAME = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


def torch_name(name: str) -> str:
    """Return a parameter's name in plain PyTorch layers; Transformer Engine fuses norms away."""
    for theirs, ours in _TORCH_NAME.items():
        name = name.replace(theirs, ours)
    return name


def _split_qkv(x: Tensor, model: ModelConfig) -> dict[str, Tensor]:
    """megatron keeps [q.. k v] of each K/V group together."""
    share = model.num_attention_heads // model.num_kv_heads
    grouped = x.view(model.num_kv_heads, share + 2, model.head_dim, -1)
    parts = {"q": grouped[:, :share], "k": grouped[:, share], "v": grouped[:, share + 1]}
    return {name: part.reshape(-1, x.shape[-1]) for name, part in parts.items()}


def named(network: PLTModel, model: ModelConfig, grad: bool = False) -> dict[str, Tensor]:
    """Return the weights (or their gradients) of a one-process model under the released names, in
    float64."""
    out: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        x = (parameter.grad if grad else parameter.data).double()
        if not name.startswith("decoder.layers."):
            names = {
                "embedding.word_embeddings.weight": "model.embed_tokens.weight",
                "decoder.final_layernorm.weight": "model.norm.weight",
                "output_layer.weight": "lm_head.weight",
            }
            out[names[name]] = x
            continue
        _, _, layer, rest = name.split(".", 3)
        p = f"model.layers.{layer}."
        if rest == "self_attention.linear_qkv.weight":
            out.update(
                {f"{p}self_attn.{n}_proj.weight": part for n, part in _split_qkv(x, model).items()}
            )
        elif rest == "mlp.linear_fc1.weight":
            out[p + "mlp.gate_proj.weight"], out[p + "mlp.up_proj.weight"] = x.chunk(2)
        else:
            for ours, theirs in (
                ("input_layernorm.weight", "input_layernorm.weight"),
                ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
                ("pre_mlp_layernorm.weight", "post_attention_layernorm.weight"),
                ("mlp.linear_fc1.layer_norm_weight", "post_attention_layernorm.weight"),
                ("self_attention.linear_proj.weight", "self_attn.o_proj.weight"),
                ("mlp.linear_fc2.weight", "mlp.down_proj.weight"),
                ("self_attention.plt_gate.", "self_attn.plt_gate."),
            ):
                if rest.startswith(ours):
                    out[p + theirs + rest.removeprefix(ours)] = x
                    break
            else:
                raise KeyError(name)
    return out


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
