"""Our weights and the released model's: every name, and the projections that are merged here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loopcoder.config.schema import ModelConfig
from loopcoder.errors import InputError
from loopcoder.hf.mapping import (
    from_released,
    merge_gate_up,
    merge_qkv,
    plain_name,
    split_gate_up,
    split_qkv,
    to_released,
)
from tests.configs import small_model

LAYER = {
    "input_layernorm.weight": (5120,),
    "self_attn.q_proj.weight": (5120, 5120),
    "self_attn.k_proj.weight": (1024, 5120),
    "self_attn.v_proj.weight": (1024, 5120),
    "self_attn.o_proj.weight": (5120, 5120),
    "self_attn.plt_gate.weight": (40, 5120),
    "self_attn.plt_gate.bias": (40,),
    "self_attn.plt_gate.gate_norm.weight": (5120,),
    "post_attention_layernorm.weight": (5120,),
    "mlp.gate_proj.weight": (27648, 5120),
    "mlp.up_proj.weight": (27648, 5120),
    "mlp.down_proj.weight": (5120, 27648),
}
RELEASED = {
    "model.embed_tokens.weight": (76800, 5120),
    "model.norm.weight": (5120,),
    "lm_head.weight": (76800, 5120),
} | {f"model.layers.{i}.{name}": shape for i in range(14) for name, shape in LAYER.items()}


ANY_TIME = settings(deadline=None, max_examples=30)  # the machine may be busy


def model(
    layers: int, heads: int, kv_heads: int, head_dim: int, hidden: int, ffn: int
) -> ModelConfig:
    return small_model(
        num_layers=layers,
        num_attention_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
    )


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    layers, kv_heads, share, head_dim = (draw(st.integers(1, 3)) for _ in range(4))
    hidden, ffn = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    return model(layers, kv_heads * share, kv_heads, 2 * head_dim, hidden, ffn)


def numbered(*shape: int) -> Tensor:
    """Return a tensor in which every element is another number."""
    size = int(torch.tensor(shape).prod())
    return torch.arange(size).view(shape)


def test_names_and_shapes_are_those_of_the_released_model() -> None:
    seven_b = model(14, 40, 8, 128, 5120, 27648)
    released = {name: torch.empty(shape, device="meta") for name, shape in RELEASED.items()}
    assert len(released) == 171
    ours = from_released(released, seven_b)
    assert len(ours) == 14 * 9 + 3
    assert ours["decoder.layers.3.self_attention.linear_qkv.weight"].shape == (7168, 5120)
    assert ours["decoder.layers.3.mlp.linear_fc1.weight"].shape == (55296, 5120)
    assert {n: tuple(x.shape) for n, x in to_released(ours, seven_b).items()} == RELEASED


@ANY_TIME
@given(models())
def test_there_and_back(model: ModelConfig) -> None:
    d, f, head_dim = model.hidden_size, model.ffn_hidden_size, model.head_dim
    heads, kv_heads = model.num_attention_heads, model.num_kv_heads
    ours = {
        "embedding.word_embeddings.weight": numbered(7, d),
        "decoder.final_layernorm.weight": numbered(d),
        "output_layer.weight": numbered(7, d) + 1,
    }
    for i in range(model.num_layers):
        ours |= {
            f"decoder.layers.{i}.{name}": numbered(*shape) + i
            for name, shape in {
                "input_layernorm.weight": (d,),
                "self_attention.linear_qkv.weight": ((heads + 2 * kv_heads) * head_dim, d),
                "self_attention.linear_proj.weight": (d, heads * head_dim),
                "self_attention.plt_gate.weight": (heads, d),
                "self_attention.plt_gate.bias": (heads,),
                "self_attention.plt_gate.gate_norm.weight": (d,),
                "pre_mlp_layernorm.weight": (d,),
                "mlp.linear_fc1.weight": (2 * f, d),
                "mlp.linear_fc2.weight": (d, f),
            }.items()
        }
    released = to_released(ours, model)
    assert len(released) == 3 + 12 * model.num_layers
    back = from_released(released, model)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], x) for name, x in ours.items())


@ANY_TIME
@given(models())
def test_a_key_value_head_lies_behind_its_query_heads(model: ModelConfig) -> None:
    heads, kv_heads, head_dim = model.num_attention_heads, model.num_kv_heads, model.head_dim
    share = heads // kv_heads
    qkv = numbered((heads + 2 * kv_heads) * head_dim, model.hidden_size)
    q, k, v = split_qkv(qkv, model)
    row = 0  # of qkv, in heads
    for group in range(kv_heads):
        rows = [(q, group * share + i) for i in range(share)] + [(k, group), (v, group)]
        for part, head in rows:
            found = part[head * head_dim :][:head_dim]
            assert torch.equal(found, qkv[row * head_dim :][:head_dim])
            row += 1
    assert row * head_dim == len(qkv)
    assert torch.equal(merge_qkv(q, k, v, model), qkv)


@ANY_TIME
@given(st.integers(1, 5), st.integers(1, 5))
def test_gate_lies_before_up(ffn: int, hidden: int) -> None:
    fc1 = numbered(2 * ffn, hidden)
    gate, up = split_gate_up(fc1)
    assert torch.equal(gate, fc1[:ffn])
    assert torch.equal(up, fc1[ffn:])
    assert torch.equal(merge_gate_up(gate, up), fc1)


def test_names_of_transformer_engine_are_known() -> None:
    norms = {
        "decoder.layers.1.self_attention.linear_qkv.layer_norm_weight": numbered(4),
        "decoder.layers.1.mlp.linear_fc1.layer_norm_weight": numbered(4) + 1,
    }
    released = to_released(norms, small_model())
    assert released["model.layers.1.input_layernorm.weight"][0] == 0
    assert released["model.layers.1.post_attention_layernorm.weight"][0] == 1
    assert from_released(released, small_model()).keys() == {plain_name(n) for n in norms}


def test_the_older_spelling_is_imported() -> None:
    tail = {"weight": numbered(4, 2), "bias": numbered(4), "gate_norm.weight": numbered(2)}
    older, todays = (
        {f"model.layers.0.self_attn.{gate}.{n}": x for n, x in tail.items()}
        for gate in ("loop_gate_proj", "plt_gate")
    )
    ours = from_released(older, small_model())
    assert ours.keys() == from_released(todays, small_model()).keys()
    assert to_released(ours, small_model()).keys() == todays.keys()


def test_what_does_not_fit_is_named() -> None:
    q = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.k_proj"):
        from_released({q: numbered(4, 2)}, small_model())
    foreign = {f"model.layers.0.self_attn.q_norm.weight{i}": numbered(4) for i in range(5)}
    with pytest.raises(InputError, match=r"q_norm\.weight0, .* and 2 more"):
        from_released(foreign, small_model())
    with pytest.raises(KeyError):
        to_released(
            {"decoder.layers.0.self_attention.q_layernorm.weight": numbered(4)}, small_model()
        )
