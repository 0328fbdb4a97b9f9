"""ModelConfig <-> config.json: every field, both spellings of RoPE, and what is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from loopcoder.config.schema import ModelConfig
from loopcoder.errors import InputError
from loopcoder.hf.config import LLAMA, PLT, from_released, to_released
from tests.configs import small_model
from tests.conftest import fresh_seed

RELEASED = {
    "architectures": [PLT],
    "model_type": "iquestpltcoder",
    "num_hidden_layers": 14,
    "hidden_size": 5120,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 27648,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000,
    "rope_scaling": None,
    "vocab_size": 76800,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "max_position_embeddings": 131072,
    "initializer_range": 0.02,
    "plt_num_loops": 2,
    "plt_window_size": [64, 0],
    "plt_normalize_per_loop": True,
    "plt_emb_scale": 0.707,
    "plt_hidden_scale": 0.053,
    "plt_gate_use_hidden_states": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "bfloat16",
}
DENSE = {
    "architectures": [LLAMA],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "intermediate_size": 96,
    "vocab_size": 97,
}


def drawn() -> ModelConfig:
    draw = random.Random(fresh_seed())
    return small_model(
        num_layers=draw.randint(1, 40),
        hidden_size=8 * draw.randint(1, 40),
        ffn_hidden_size=draw.randint(1, 999),
        num_kv_heads=(kv_heads := draw.randint(1, 8)),
        num_attention_heads=kv_heads * draw.randint(1, 4),
        head_dim=2 * draw.randint(1, 64),
        num_loops=draw.randint(1, 4),
        window=draw.randint(0, 99),
        norm_per_loop=draw.random() < 0.5,
        gate=draw.choice(["hidden", "query"]),
        emb_scale=draw.choice([None, draw.random()]),
        hidden_scale=draw.choice([None, draw.random()]),
        norm_eps=draw.random(),
        rope_theta=1e6 * draw.random(),
        max_position_embeddings=draw.randint(1, 1 << 20),
        init_std=draw.random(),
    )


def test_the_released_model() -> None:
    described = from_released(RELEASED, "config.json")
    model = described.model
    assert (model.num_loops, model.window, model.gate, model.a, model.b) == (
        2, 64, "hidden", 0.707, 0.053,
    )  # fmt: skip
    again = to_released(model, described.vocab_size, bos_token_id=1, eos_token_id=2)
    assert {key: again[key] for key in RELEASED} == RELEASED


@pytest.mark.parametrize("spelling", ["transformers 4", "transformers 5"])
def test_there_and_back(spelling: str) -> None:
    model = drawn()
    content = to_released(model, 997)
    if spelling == "transformers 5":
        del content["rope_scaling"]
        theta = content.pop("rope_theta")
        content["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    described = from_released(content, "config.json", model.name)
    assert described.model == replace(model, layer_spec="auto")
    assert (described.vocab_size, described.is_tied) == (997, False)


def test_a_dense_model_has_one_loop_and_the_defaults_of_transformers() -> None:
    described = from_released(DENSE | {"tie_word_embeddings": True}, "config.json")
    model = described.model
    assert described.is_tied
    assert model.num_loops == 1
    assert (model.num_kv_heads, model.head_dim) == (6, 8)
    assert (model.rope_theta, model.norm_eps) == (10000.0, 1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_bias", True),
        ("mlp_bias", True),
        ("hidden_act", "gelu"),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
        ("quantization_config", {"bits": 4}),
        ("num_key_value_heads", 4),
        ("head_dim", 7),
        ("num_hidden_layers", "two"),
        ("vocab_size", -1),
        ("architectures", ["GPT2LMHeadModel"]),
    ],
)
def test_what_our_model_cannot_be_is_named(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=field):
        from_released(DENSE | {field: value}, "config.json")


def test_fields_that_are_missing_are_all_named() -> None:
    without = {key: value for key, value in RELEASED.items() if not key.startswith("plt_")}
    with pytest.raises(InputError, match=r"plt_num_loops.*plt_hidden_scale.*plt_window_size"):
        from_released(without, "config.json")
    with pytest.raises(InputError, match="rope_theta"):
        from_released({**RELEASED, "rope_theta": None}, "config.json")
    with pytest.raises(InputError, match="plt_window_size"):
        from_released({**RELEASED, "plt_window_size": [64, 64]}, "config.json")


def test_a_control_has_fields_that_the_released_config_lacks() -> None:
    released = to_released(small_model(num_loops=2), 128)
    for other in ({"shift": False}, {"kv_sharing": "own"}):
        model = small_model(num_loops=2, **other)
        content = to_released(model, 128)
        assert {*content} - {*released} == {f"plt_{name}" for name in other}
        assert from_released(content, "config.json", "test").model == replace(
            model, layer_spec="auto"
        )
        assert {*to_released(replace(model, num_loops=1), 128)} == {*released}
