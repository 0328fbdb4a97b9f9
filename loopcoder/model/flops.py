"""Floating-point operations and parameters of a looped model (plt.md section 8).

Two conventions of attention are in use, and MFU is printed in both: `causal` counts the keys a
token really sees, `full` counts the whole S x S matrix. Recomputed activations are not useful work
in either.
"""

from __future__ import annotations

from loopcoder.config.schema import ModelConfig


def block_parameters(model: ModelConfig) -> int:
    """Weights of one layer's matrix products (norms and gates aside)."""
    attention = (
        model.hidden_size
        * model.head_dim
        * (2 * model.num_attention_heads + 2 * model.num_kv_heads)
    )
    return attention + 3 * model.hidden_size * model.ffn_hidden_size


def gate_parameters(model: ModelConfig) -> int:
    """Weights of one layer's gate, its norm included; 0 where the model has none."""
    if not model.has_gates:
        return 0
    if model.gate == "hidden":
        return model.num_attention_heads * (model.hidden_size + 1) + model.hidden_size
    return model.num_attention_heads * (model.head_dim + 1)


def parameters(model: ModelConfig, vocab_size: int) -> int:
    """All trainable parameters."""
    layer = block_parameters(model) + 2 * model.hidden_size + gate_parameters(model)
    return model.num_layers * layer + model.hidden_size + 2 * vocab_size * model.hidden_size


def train_flops_per_token(
    model: ModelConfig, vocab_size: int, seq_length: int
) -> tuple[float, float]:
    """Forward and backward FLOPs of one token, attention counted (causal, full).

    Documents are taken to be as long as the sequence; shorter ones do less.
    """
    loops, layers = model.num_loops, model.num_layers
    width = model.num_attention_heads * model.head_dim
    matmuls = 6.0 * (loops * layers * block_parameters(model) + vocab_size * model.hidden_size)
    window = 12.0 * (loops - 1) * layers * (model.window + 1) * width if model.has_gates else 0.0
    full = 12.0 * loops * layers * seq_length * width
    return matmuls + window + full / 2, matmuls + window + full
