"""Configuration of a Parallel Loop Transformer, for transformers 4.57 and 5."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PretrainedConfig


class IQuestPLTCoderConfig(PretrainedConfig):
    """The fields of config.json; the defaults are those of LoopCoder-V2 (7B).

    `plt_emb_scale` (a) and `plt_hidden_scale` (b) may be null, which means 1.0. `plt_shift` and
    `plt_kv_sharing` are not in the released config.json: they are for models trained as controls.
    """

    model_type = "iquestpltcoder"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012

    def __init__(
        self,
        vocab_size: int = 76800,
        hidden_size: int = 5120,
        intermediate_size: int = 27648,
        num_hidden_layers: int = 14,
        num_attention_heads: int = 40,
        num_key_value_heads: int = 8,
        head_dim: int = 128,
        hidden_act: str = "silu",
        rms_norm_eps: float = 1e-5,
        rope_theta: float = 500000.0,
        rope_scaling: dict[str, Any] | None = None,
        max_position_embeddings: int = 131072,
        initializer_range: float = 0.02,
        attention_bias: bool = False,
        mlp_bias: bool = False,
        plt_num_loops: int = 2,
        plt_window_size: tuple[int, int] | list[int] = (64, 0),
        plt_normalize_per_loop: bool = True,
        plt_emb_scale: float | None = 0.707,
        plt_hidden_scale: float | None = 0.053,
        plt_gate_use_hidden_states: bool = True,
        plt_shift: bool = True,
        plt_kv_sharing: str = "first",
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        bos_token_id: int | None = 1,
        eos_token_id: int | list[int] | None = 2,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ):
        # transformers 5 writes rope_theta and rope_scaling as rope_parameters
        rope = {**(kwargs.pop("rope_parameters", None) or {}), **(rope_scaling or {})}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise ValueError(f"rope_scaling={rope}: this model has plain rotary embeddings")
        if hidden_act != "silu" or attention_bias or mlp_bias:
            raise ValueError("this model has hidden_act=silu, and no biases in attention and MLP")
        if plt_kv_sharing not in ("first", "own"):
            raise ValueError(f"plt_kv_sharing={plt_kv_sharing!r}: it is 'first' or 'own'")
        if plt_num_loops < 1 or len(plt_window_size) != 2 or plt_window_size[1] != 0:
            raise ValueError("plt_num_loops is 1 or more, and plt_window_size is [N, 0]")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.hidden_act = hidden_act
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = float(rope.get("rope_theta", rope_theta))
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.attention_bias = attention_bias
        self.mlp_bias = mlp_bias
        self.plt_num_loops = plt_num_loops
        self.plt_window_size = list(plt_window_size)
        self.plt_normalize_per_loop = plt_normalize_per_loop
        self.plt_emb_scale = plt_emb_scale
        self.plt_hidden_scale = plt_hidden_scale
        self.plt_gate_use_hidden_states = plt_gate_use_hidden_states
        self.plt_shift = plt_shift
        self.plt_kv_sharing = plt_kv_sharing
        self.use_cache = use_cache
        super().__init__(
            tie_word_embeddings=tie_word_embeddings,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            **kwargs,
        )

    @property
    def has_gates(self) -> bool:
        """Whether later loops mix two attentions."""
        return self.plt_num_loops > 1 and self.plt_kv_sharing == "first"
