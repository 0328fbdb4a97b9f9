"""The weights of a model that decodes: plain tensors, as a rank holds them.

They come one at a time from whatever has them whole under our names (hf/mapping.py), so that
loading takes little more memory than the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from loopcoder.config.schema import ModelConfig
from loopcoder.hf.mapping import merge_gate_up, released_names, released_shapes, split_gate_up
from loopcoder.infer.split import WHOLE, Split

Read = Callable[[str], Tensor]
"""Gives a whole weight by our name."""


@dataclass(frozen=True)
class GateWeights:
    """The gate between the two attentions of later loops."""

    norm: Tensor | None
    """[D]; None: the gate reads queries."""
    weight: Tensor
    """[heads, D], or [heads, head_dim] where it reads queries."""
    bias: Tensor
    """[heads]"""


@dataclass(frozen=True)
class LayerWeights:
    """One layer. `heads`, `kv_heads` and `F` (ffn_hidden_size) are those of this rank."""

    input_norm: Tensor
    """[D]"""
    qkv: Tensor
    """[(heads + 2 kv_heads) * head_dim, D], by K/V head: its query heads, its K, its V."""
    gate: GateWeights | None
    output: Tensor
    """[D, heads * head_dim]"""
    mlp_norm: Tensor
    """[D]"""
    gate_up: Tensor
    """[2 F, D]: gate, then up."""
    down: Tensor
    """[D, F]"""


@dataclass(frozen=True)
class ModelWeights:
    """All of a model that a rank holds."""

    embedding: Tensor
    """[rows, D], whole on every rank: a look-up reads one row, a sum over ranks would cost more."""
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    """[D]"""
    head: Tensor
    """Rows of the vocabulary alone, without padding: [vocabulary, D]. Split over ranks, with rows
    of zeros so that each has as many."""

    def tensors(self) -> Iterator[Tensor]:
        """Yield all of them."""
        yield from (self.embedding, self.final_norm, self.head)
        for layer in self.layers:
            parts = [*vars(layer).values(), *(vars(layer.gate).values() if layer.gate else ())]
            yield from (part for part in parts if isinstance(part, Tensor))


def build_weights(
    read: Read,
    model: ModelConfig,
    vocabulary: int,
    device: torch.device,
    dtype: torch.dtype,
    split: Split = WHOLE,
) -> ModelWeights:
    """Read this rank's part of a model; what is there in the type and on the device is not copied.

    Args:
        vocabulary: Tokens that there are: rows of the head without its padding.
        dtype: In which the model computes.
    """

    def put(part: Tensor) -> Tensor:
        # a view of a split weight would keep all of it
        return part.detach().to(device, dtype, copy=split.size > 1).contiguous()

    def rows(name: str) -> Tensor:
        return put(split.share(read(name), 0))

    def columns(name: str) -> Tensor:
        return put(split.share(read(name), 1))

    def whole(name: str) -> Tensor:
        return put(read(name))

    def gate_of(layer: str) -> GateWeights | None:
        if not model.has_gates:
            return None
        gate = f"{layer}self_attention.plt_gate."
        norm = whole(f"{gate}gate_norm.weight") if model.gate == "hidden" else None
        return GateWeights(norm, rows(f"{gate}weight"), rows(f"{gate}bias"))

    def gate_up_of(layer: str) -> Tensor:
        merged = read(f"{layer}mlp.linear_fc1.weight")
        if split.size == 1:
            return put(merged)
        gate, up = split_gate_up(merged)
        return put(merge_gate_up(split.share(gate, 0), split.share(up, 0)))

    def layer_of(index: int) -> LayerWeights:
        layer = f"decoder.layers.{index}."
        return LayerWeights(
            input_norm=whole(f"{layer}input_layernorm.weight"),
            qkv=rows(f"{layer}self_attention.linear_qkv.weight"),
            gate=gate_of(layer),
            output=columns(f"{layer}self_attention.linear_proj.weight"),
            mlp_norm=whole(f"{layer}pre_mlp_layernorm.weight"),
            gate_up=gate_up_of(layer),
            down=columns(f"{layer}mlp.linear_fc2.weight"),
        )

    def head() -> Tensor:
        found = read("output_layer.weight")[:vocabulary]
        missing = -vocabulary % split.size
        return put(split.share(F.pad(found, (0, 0, 0, missing)) if missing else found, 0))

    return ModelWeights(
        embedding=whole("embedding.word_embeddings.weight"),
        layers=tuple(layer_of(i) for i in range(model.num_layers)),
        final_norm=whole("decoder.final_layernorm.weight"),
        head=head(),
    )


def weight_bytes(
    model: ModelConfig, rows: int, vocabulary: int, dtype: torch.dtype, split: Split = WHOLE
) -> int:
    """Return what `build_weights` holds on a rank.

    Args:
        rows: Of the embedding.
    """
    shapes, names = released_shapes(model, rows), released_names(model)

    def read(name: str) -> Tensor:
        first, *more = (shapes[theirs] for theirs in names[name])
        shape = (first[0] + sum(other[0] for other in more), *first[1:])
        return torch.empty(shape, dtype=dtype, device="meta")

    meta = torch.device("meta")
    held = build_weights(read, model, vocabulary, meta, dtype, split)
    return sum(x.nbytes for x in held.tensors())
