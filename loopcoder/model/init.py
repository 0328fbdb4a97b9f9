"""Initial weights that depend on the seed and the parameter's name, not on the parallel layout.

Megatron draws each tensor-parallel shard from its own random stream, so TP1 and TP2 start from
different models. Here every rank draws the whole parameter and keeps its shard.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from loopcoder.config.schema import ModelConfig
from loopcoder.model.plt import PLTModel


def initialise(network: PLTModel, model: ModelConfig, seed: int) -> None:
    """Fill all parameters: norms 1, gates of layers sigmoid(gate_bias_init), the exit gate 1/2, all
    else normal(0, std)."""
    for name, parameter in network.named_parameters():
        with torch.no_grad():
            if "norm" in name:
                parameter.fill_(1.0)
            elif "exit_gate" in name:
                parameter.zero_()
            elif "plt_gate" in name:
                parameter.fill_(model.gate_bias_init if name.endswith("bias") else 0.0)
            else:
                std = standard_deviation(name, model)
                parameter.copy_(_draw(global_name(name, network), parameter, std, seed, network))


def standard_deviation(name: str, model: ModelConfig) -> float:
    """Return the standard deviation with which a matrix is drawn."""
    if "word_embeddings" in name:
        own = model.embedding_init_std
        return model.init_std if own is None else own
    if "output_layer" in name:
        own = model.head_init_std
        return model.init_std if own is None else own
    if not is_output_projection(name):
        return model.init_std
    if model.output_init == "zero":
        return 0.0
    depth = model.num_layers * (model.num_loops if model.output_init == "effective" else 1)
    return model.residual_scale * model.init_std / math.sqrt(2 * depth)


def is_output_projection(name: str) -> bool:
    """Say whether a parameter writes into the residual stream."""
    return "linear_proj" in name or "linear_fc2" in name


def global_name(name: str, network: PLTModel) -> str:
    """Replace the layer's index within the stage by its index in the model."""
    parts = name.split(".")
    if parts[:2] == ["decoder", "layers"]:
        parts[2] = str(network.decoder.layer_numbers[int(parts[2])])
    return ".".join(parts)


def _draw(name: str, like: Tensor, std: float, seed: int, network: PLTModel) -> Tensor:
    """Draw the whole parameter in fp32 and cut out this rank's shard."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator(like.device).manual_seed(int.from_bytes(digest[:7], "big"))
    size, rank = network.tp_group.size(), network.tp_group.rank()
    is_split = getattr(like, "tensor_model_parallel", False)
    dim: int | None = getattr(like, "partition_dim") if is_split else None  # noqa: B009
    shape = list(like.shape)
    if dim is not None:
        shape[dim] *= size
    whole = torch.empty(shape, dtype=torch.float32, device=like.device).normal_(
        0.0, std, generator=generator
    )
    if dim is None:
        return whole
    if "linear_fc1" in name:  # the gate and up halves are each split over the ranks
        return torch.cat([half.chunk(size, dim)[rank] for half in whole.chunk(2, dim)], dim)
    return whole.chunk(size, dim)[rank]
