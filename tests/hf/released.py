"""Folders for transformers with random weights, written with safetensors alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from data_pipeline.tokenizer.encoder import train_tokenizer
from loopcoder.config.schema import ModelConfig
from loopcoder.hf.config import LLAMA, to_released
from loopcoder.hf.mapping import released_shapes

VOCAB = 330
"""Rows of embedding and head; a tokenizer of fewer tokens fits."""


def random_tensors(model: ModelConfig, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a model's weights under the released names; norms are around 1."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in released_shapes(model, VOCAB).items():
        x = torch.randn(shape, generator=generator) * 0.2
        out[name] = (x + 1 if "norm" in name else x).to(dtype)
    return out


def llama_config(model: ModelConfig, *, is_tied: bool = False) -> dict[str, Any]:
    """Return the config.json of a dense model, as transformers writes it."""
    released = to_released(model, VOCAB)
    return {key: value for key, value in released.items() if not key.startswith("plt_")} | {
        "architectures": [LLAMA],
        "model_type": "llama",
        "tie_word_embeddings": is_tied,
    }


def write_folder(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], *, shards: int = 1
) -> Path:
    """Write config.json, a small tokenizer, and the weights in some shards."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    train_tokenizer(
        ["def add(a, b):\n    return a + b\n"] * 3, VOCAB - 4, folder / "tokenizer.json"
    )
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weights = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weights |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
