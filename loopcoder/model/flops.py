"""Floating-point operations and parameters of a looped model (plt.md section 8).

Two conventions of attention are in use, and MFU is printed in both: `causal` counts the keys a
token really sees, `full` counts the whole S x S matrix. Recomputed activations are not useful work
in either.
"""

from __future__ import annotations

from collections.abc import Mapping

from loopcoder.config.objective import ObjectiveConfig
from loopcoder.config.schema import ModelConfig
from loopcoder.model.step_objective import shares_of_counts, step_objective


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


def parameters(
    model: ModelConfig, vocab_size: int, objective: ObjectiveConfig | None = None
) -> int:
    """All trainable parameters; without an objective those that a forward pass uses."""
    layer = block_parameters(model) + 2 * model.hidden_size + gate_parameters(model)
    exit_gate = 0
    if objective is not None and objective.has_gate(model.num_loops):
        exit_gate = model.hidden_size + 1
    whole = model.hidden_size + 2 * vocab_size * model.hidden_size + exit_gate
    return model.num_layers * layer + whole


def num_read_loops(objective: ObjectiveConfig, num_loops: int) -> int:
    """Return how often the head reads a token that runs through all loops."""
    return len(step_objective(objective, num_loops, num_loops).read_loops)


def train_flops_per_token(
    model: ModelConfig,
    vocab_size: int,
    seq_length: int,
    objective: ObjectiveConfig | None = None,
    shares: Mapping[int, float] | None = None,
) -> tuple[float, float]:
    """Forward and backward FLOPs of one token, attention counted (causal, full).

    Documents are taken to be as long as the sequence; shorter ones do less.

    Args:
        objective: which loops the head reads, and how many steps run; None: all of them, and the
            last one.
        shares: of the tokens that were trained with so many loops; None: those that the objective
            comes to over many steps.
    """
    objective = objective or ObjectiveConfig()
    shares = shares or shares_of_counts(objective, model.num_loops)
    both = [_with_loops(model, vocab_size, seq_length, objective, loops) for loops in shares]
    causal, full = (
        sum(share * of_loops for share, of_loops in zip(shares.values(), kind, strict=True))
        for kind in zip(*both, strict=True)
    )
    return causal, full


def _with_loops(
    model: ModelConfig, vocab_size: int, seq_length: int, objective: ObjectiveConfig, loops: int
) -> tuple[float, float]:
    layers = model.num_layers
    width = model.num_attention_heads * model.head_dim
    heads = len(step_objective(objective, model.num_loops, loops).read_loops)
    gates = model.hidden_size * (loops - 1) if objective.has_gate(model.num_loops) else 0
    head = heads * vocab_size * model.hidden_size + gates
    matmuls = 6.0 * (loops * layers * block_parameters(model) + head)
    window = 12.0 * (loops - 1) * layers * (model.window + 1) * width if model.has_gates else 0.0
    full = 12.0 * loops * layers * seq_length * width
    return matmuls + window + full / 2, matmuls + window + full
