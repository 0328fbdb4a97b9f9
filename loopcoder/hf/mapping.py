"""Names and shapes of the released model (IQuestPLTCoderForCausalLM), and ours.

Ours are those of megatron-core's plain PyTorch layers, each tensor whole and not split over ranks.
megatron-core merges two groups of projections into one weight each:

    linear_qkv  [(heads + 2 kv_heads) * head_dim, D]   by K/V head: its query heads, its K, its V
    linear_fc1  [2 * ffn_hidden_size, D]               gate, then up

Gradients and moments have the shapes of their weights and are mapped alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from loopcoder.config.schema import ModelConfig
from loopcoder.errors import InputError

_QKV, _GATE_UP = "self_attention.linear_qkv.weight", "mlp.linear_fc1.weight"

_MODEL = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}

BY_TOKEN = ("embedding.word_embeddings.weight", "output_layer.weight")
"""Our names of the weights that have a row for each token."""

_LAYER: dict[str, tuple[str, ...]] = {
    "input_layernorm.weight": ("input_layernorm.weight",),
    _QKV: tuple(f"self_attn.{x}_proj.weight" for x in "qkv"),
    "self_attention.linear_proj.weight": ("self_attn.o_proj.weight",),
    "self_attention.plt_gate.weight": ("self_attn.plt_gate.weight",),
    "self_attention.plt_gate.bias": ("self_attn.plt_gate.bias",),
    "self_attention.plt_gate.gate_norm.weight": ("self_attn.plt_gate.gate_norm.weight",),
    "pre_mlp_layernorm.weight": ("post_attention_layernorm.weight",),
    _GATE_UP: ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.linear_fc2.weight": ("mlp.down_proj.weight",),
}
"""Of one layer: our name, and those of the tensors that it is made of."""

_FUSED = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
"""Of one layer: norms that Transformer Engine fuses into the projection that follows."""

_OLDER = {"self_attn.loop_gate_proj.": "self_attn.plt_gate."}
"""Of one layer: an older spelling of released names, and today's."""


def plain_name(name: str) -> str:
    """Return a parameter's name in plain PyTorch layers; Transformer Engine fuses norms away."""
    for fused, plain in _FUSED.items():
        name = name.replace(fused, plain)
    return name


def names_of(model: ModelConfig) -> list[str]:
    """Return our names of all weights of a model, in the order of the released files."""
    embedding, final_norm, head = _MODEL
    layer = [
        name
        for name in _LAYER
        if "plt_gate" not in name
        or (model.has_gates and (model.gate == "hidden" or "gate_norm" not in name))
    ]
    layers = [f"decoder.layers.{i}.{name}" for i in range(model.num_layers) for name in layer]
    return [embedding, *layers, final_norm, head]


def released_names(model: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Return every tensor of a model by our name, with the released ones that it is made of."""
    out: dict[str, tuple[str, ...]] = {}
    for ours in names_of(model):
        if ours in _MODEL:
            out[ours] = (_MODEL[ours],)
        else:
            _, _, layer, name = ours.split(".", 3)
            out[ours] = tuple(f"model.layers.{layer}.{theirs}" for theirs in _LAYER[name])
    return out


def released_shapes(model: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model by its released name.

    Args:
        vocab_size: Rows of embedding and head.
    """
    d, f, heads = model.hidden_size, model.ffn_hidden_size, model.num_attention_heads
    q, kv = heads * model.head_dim, model.num_kv_heads * model.head_dim
    of_a_layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (d,),
        "self_attn.q_proj.weight": (q, d),
        "self_attn.k_proj.weight": (kv, d),
        "self_attn.v_proj.weight": (kv, d),
        "self_attn.o_proj.weight": (d, q),
        "self_attn.plt_gate.weight": (heads, d if model.gate == "hidden" else model.head_dim),
        "self_attn.plt_gate.bias": (heads,),
        "self_attn.plt_gate.gate_norm.weight": (d,),
        "post_attention_layernorm.weight": (d,),
        "mlp.gate_proj.weight": (f, d),
        "mlp.up_proj.weight": (f, d),
        "mlp.down_proj.weight": (d, f),
    }
    of_the_model: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab_size, d),
        "model.norm.weight": (d,),
        "lm_head.weight": (vocab_size, d),
    }
    return {
        name: of_the_model.get(name) or of_a_layer[name.split(".", 3)[3]]
        for names in released_names(model).values()
        for name in names
    }


def todays_name(name: str) -> str:
    """Return the released name of today for one of an older spelling."""
    for older, todays in _OLDER.items():
        name = name.replace(older, todays)
    return name


def shard_name(ours: str) -> tuple[str, int | None]:
    """Return under which name the shards of a checkpoint have a tensor of ours, and its index
    there along the first axis: megatron-core stacks the layers, and names norms as Transformer
    Engine does. None: it is no tensor of a layer."""
    if not ours.startswith("decoder.layers."):
        return f"model.{ours}", None
    _, _, layer, name = ours.split(".", 3)
    fused = {plain: fused for fused, plain in _FUSED.items()}
    return f"model.decoder.layers.{fused.get(name, name)}", int(layer)


def to_released(tensors: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Return tensors under the released names, from ours of either layer spec.

    An exit gate (`objective.exit`) is left out: the format has none, and no logit depends on it.
    """
    out: dict[str, Tensor] = {}
    for name, x in tensors.items():
        if name.startswith("exit_gate."):
            continue
        if name in _MODEL:
            out[_MODEL[name]] = x
            continue
        _, _, layer, ours = plain_name(name).split(".", 3)
        for theirs, part in zip(_LAYER[ours], _split(ours, x, model), strict=True):
            out[f"model.layers.{layer}.{theirs}"] = part
    return out


def from_released(tensors: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Return tensors under our names, from the released ones of today or of the older spelling.

    Whether they are all that a model has is for the caller to check.

    Raises:
        InputError: a name is not of this format, or a part of a merged weight is missing.
    """
    left = {todays_name(name): x for name, x in tensors.items()}
    out = {ours: left.pop(theirs) for ours, theirs in _MODEL.items() if theirs in left}
    for layer in {name.split(".")[2]: None for name in left if name.startswith("model.layers.")}:
        for ours, names in _LAYER.items():
            theirs = [f"model.layers.{layer}.{name}" for name in names]
            missing = [name for name in theirs if name not in left]
            parts = [left.pop(name) for name in theirs if name in left]
            if parts and missing:
                raise InputError.of(
                    f"the checkpoint lacks {', '.join(missing)}",
                    f"it is one weight here with others that are there ({ours})",
                    "download the checkpoint again, with all of its files",
                )
            if parts:
                out[f"decoder.layers.{layer}.{ours}"] = _merge(ours, parts, model)
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise InputError.of(
            f"the checkpoint has {', '.join(sorted(left)[:3])}{more}",
            "no tensor of the released LoopCoder models has such a name",
            "give a checkpoint whose config.json says IQuestPLTCoderForCausalLM",
        )
    return out


def split_qkv(qkv: Tensor, model: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return the query, key and value projections, each [heads * head_dim, D]."""
    grouped = qkv.unflatten(0, (model.num_kv_heads, -1, model.head_dim))
    q, k, v = grouped[:, :-2], grouped[:, -2:-1], grouped[:, -1:]
    return q.flatten(0, 2), k.flatten(0, 2), v.flatten(0, 2)


def merge_qkv(q: Tensor, k: Tensor, v: Tensor, model: ModelConfig) -> Tensor:
    """Return the merged projection; the inverse of `split_qkv`."""
    grouped = [x.unflatten(0, (model.num_kv_heads, -1, model.head_dim)) for x in (q, k, v)]
    return torch.cat(grouped, 1).flatten(0, 2)


def split_gate_up(fc1: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gate and up projections, each [ffn_hidden_size, D]."""
    gate, up = fc1.chunk(2)
    return gate, up


def merge_gate_up(gate: Tensor, up: Tensor) -> Tensor:
    """Return the merged projection; the inverse of `split_gate_up`."""
    return torch.cat([gate, up])


def _split(ours: str, x: Tensor, model: ModelConfig) -> tuple[Tensor, ...]:
    if ours == _QKV:
        return split_qkv(x, model)
    return split_gate_up(x) if ours == _GATE_UP else (x,)


def _merge(ours: str, parts: list[Tensor], model: ModelConfig) -> Tensor:
    if ours == _QKV:
        q, k, v = parts
        return merge_qkv(q, k, v, model)
    return merge_gate_up(*parts) if ours == _GATE_UP else parts[0]
