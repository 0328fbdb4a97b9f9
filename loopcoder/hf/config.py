"""ModelConfig and the config.json of a folder for transformers, in both directions.

Folders of two kinds are read: IQuestPLTCoderForCausalLM, the released LoopCoder models, and
LlamaForCausalLM, a dense model that is R = 1 here. Only the first is written, every field of it:
defaults of the released configuration class are not those of its config.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from loopcoder.config.schema import ModelConfig
from loopcoder.errors import InputError, Problem

PLT, LLAMA = "IQuestPLTCoderForCausalLM", "LlamaForCausalLM"
MODEL_TYPE = "iquestpltcoder"
_TYPES = {MODEL_TYPE: PLT, "llama": LLAMA}

_FIELDS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "norm_eps": "rms_norm_eps",
    "max_position_embeddings": "max_position_embeddings",
    "init_std": "initializer_range",
}
"""Our name of what every folder says, and theirs."""
_LOOPS = {
    "num_loops": "plt_num_loops",
    "norm_per_loop": "plt_normalize_per_loop",
    "emb_scale": "plt_emb_scale",
    "hidden_scale": "plt_hidden_scale",
}
_CONTROLS = {"shift": "plt_shift", "kv_sharing": "plt_kv_sharing"}
"""Of models that were trained as controls: not in the released config.json, and written only where
they are not the released model's."""
_GATE, _WINDOW = "plt_gate_use_hidden_states", "plt_window_size"
_NEEDED_OF_LLAMA = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
)
_LLAMA_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rope_theta": 10000.0,
}
"""What transformers' LlamaConfig takes where a config.json is silent."""
_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
"""Fields that may have one value only, which is also meant where they are absent."""


@dataclass(frozen=True)
class Described:
    """The model that a config.json describes."""

    model: ModelConfig
    vocab_size: int
    """Rows of embedding and head in the folder."""
    is_tied: bool
    """The head is the embedding, and the folder need not have it."""


def to_released(
    model: ModelConfig,
    vocab_size: int,
    *,
    rope_theta: float | None = None,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    bos_token_id: int | None = None,
    eos_token_id: int | list[int] | None = None,
    pad_token_id: int | None = None,
) -> dict[str, Any]:
    """Return the content of config.json, with every field that the released one has.

    Args:
        model: Its `vocab_size` is not read.
        vocab_size: Rows of embedding and head.
        rope_theta: Of the data stage that was trained last; None: the model's.
    """
    return {
        "architectures": [PLT],
        "model_type": MODEL_TYPE,
        **{theirs: getattr(model, ours) for ours, theirs in (_FIELDS | _LOOPS).items()},
        _WINDOW: [model.window, 0],
        _GATE: model.gate == "hidden",
        "hidden_act": "silu",
        "rope_theta": model.rope_theta if rope_theta is None else rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "vocab_size": vocab_size,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        **({} if pad_token_id is None else {"pad_token_id": pad_token_id}),
        "use_cache": True,
        "dtype": dtype,
        **{
            theirs: getattr(model, ours)
            for ours, theirs in _CONTROLS.items()
            if model.num_loops > 1
            and getattr(model, ours) != ModelConfig.__dataclass_fields__[ours].default
        },
    }


def from_released(content: Mapping[str, Any], place: object, name: str = "imported") -> Described:
    """Return the model that a config.json describes.

    Args:
        content: Of config.json.
        place: What messages call it.
        name: Of the model, as presets have one.

    Raises:
        InputError: with every field that is missing, wrong, or of what our model cannot be.
    """
    kind = _kind(content, place)
    if missing := _missing(content, kind):
        raise InputError.of(
            f"{place} has no {', '.join(missing)}",
            f"they decide what a {kind} computes, and no default is right for all models",
            "the config.json that the model was published with",
        )
    content = (_LLAMA_DEFAULTS if kind == LLAMA else {}) | {
        key: value for key, value in content.items() if value is not None or key in _LOOPS.values()
    }
    if problems := list(_unreadable(content, place)):
        raise InputError(problems)
    heads = content["num_attention_heads"]
    if kind == LLAMA:
        content.setdefault("num_key_value_heads", heads)
        content.setdefault("head_dim", content["hidden_size"] // heads)
    fields = {ours: content[theirs] for ours, theirs in _FIELDS.items()}
    fields["rope_theta"] = _rope(content)["rope_theta"]
    if kind == LLAMA:
        fields["num_loops"] = 1
    else:
        fields |= {ours: content[theirs] for ours, theirs in _LOOPS.items()}
        fields |= {"window": content[_WINDOW][0], "gate": "hidden" if content[_GATE] else "query"}
        fields |= {ours: content[theirs] for ours, theirs in _CONTROLS.items() if theirs in content}
    try:
        model = ModelConfig(name=name, **fields)
    except ValidationError as error:
        theirs = _FIELDS | _LOOPS | _CONTROLS | {"window": _WINDOW, "rope_theta": "rope_theta"}
        raise InputError(
            [
                Problem(
                    f"{place}: {theirs[str(e['loc'][0])]}={e['input']!r}",
                    e["msg"],
                    "the config.json that the model was published with",
                )
                for e in error.errors()
            ]
        ) from error
    if problems := list(_odd_heads(model, place)):
        raise InputError(problems)
    return Described(model, content["vocab_size"], bool(content.get("tie_word_embeddings", False)))


def _kind(content: Mapping[str, Any], place: object) -> str:
    named = content.get("architectures") or [_TYPES.get(str(content.get("model_type")), "")]
    kinds = [kind for kind in named if kind in _TYPES.values()] if isinstance(named, list) else []
    if kinds:
        return str(kinds[0])
    raise InputError.of(
        f"{place} has architectures={content.get('architectures')}, "
        f"model_type={content.get('model_type')}",
        f"models of {PLT} and {LLAMA} are read",
        "a folder of one of them",
    )


def _missing(content: Mapping[str, Any], kind: str) -> list[str]:
    if kind == LLAMA:
        needed = list(_NEEDED_OF_LLAMA)
    else:
        needed = [*_FIELDS.values(), "vocab_size", *_LOOPS.values(), _WINDOW, _GATE]
    nullable = (_LOOPS["emb_scale"], _LOOPS["hidden_scale"])
    missing = [n for n in needed if n not in content or (content[n] is None and n not in nullable)]
    if kind == PLT and "rope_theta" not in _rope(content):
        missing.append("rope_theta")
    return missing


def _rope(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary embedding's fields in one dict: transformers 4 writes `rope_theta` and
    `rope_scaling`, 5 writes `rope_parameters`."""
    found = {"rope_theta": content["rope_theta"]} if content.get("rope_theta") is not None else {}
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(content.get(key), dict):
            found |= content[key]
    return found


def _unreadable(content: Mapping[str, Any], place: object) -> Iterator[Problem]:
    """Yield the fields by which a model differs from what ours can be."""
    fix = "a model without it; there is no way to convert the weights"
    for key, only in _FIXED.items():
        value = content.get(key, only)
        if key == "hidden_act" and value == "swish":  # the same function
            continue
        if value != only:
            shown = "..." if isinstance(value, dict) else value
            yield Problem(f"{place}: {key}={shown}", f"our model has {key}={only}", fix)
    for key in ("rope_scaling", "rope_parameters"):
        rope = content.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            yield Problem(f"{place}: {key}={rope}", "it is an object, or null", f"{key}: null")
        elif (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
            yield Problem(f"{place}: {key} is of type {kind}", "ours has plain RoPE", fix)
        elif rope.get("partial_rotary_factor", 1.0) != 1.0:
            factor = rope["partial_rotary_factor"]
            why = "ours rotates whole heads"
            yield Problem(f"{place}: {key}.partial_rotary_factor={factor}", why, fix)
    for key in ("num_attention_heads", "hidden_size", "vocab_size"):
        value = content[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield Problem(f"{place}: {key}={value!r}", "it is a number of 1 or more", "a number")
    window = content.get(_WINDOW, [0, 0])
    if not isinstance(window, list) or len(window) != 2 or window[1] != 0:
        why = "later loops see keys to the left: [N, 0]"
        yield Problem(f"{place}: {_WINDOW}={window}", why, f"{_WINDOW}: [64, 0]")
    if not isinstance(content.get(_GATE, True), bool):
        yield Problem(f"{place}: {_GATE}={content[_GATE]!r}", "it is true or false", "true")


def _odd_heads(model: ModelConfig, place: object) -> Iterator[Problem]:
    heads, kv_heads = model.num_attention_heads, model.num_kv_heads
    fix = "a model of other heads; there is no way to convert the weights"
    if heads % kv_heads:
        fact = f"{place}: num_attention_heads={heads} num_key_value_heads={kv_heads}"
        yield Problem(fact, "as many query heads share every key/value head", fix)
    if model.head_dim % 2:
        yield Problem(f"{place}: head_dim={model.head_dim}", "RoPE rotates pairs", fix)
