"""What a step costs, before there is a corpus."""

from __future__ import annotations

from loopcoder.config.schema import Config
from loopcoder.model.flops import train_flops_per_token
from loopcoder.plan.memory import planned_vocabulary


def tokens_per_step(config: Config) -> int:
    """Return the tokens of a step in the first data stage, without a batch ramp."""
    return config.train.global_batch_size * config.stages[0].seq_length


def flops_per_token(config: Config) -> float:
    """Return the training FLOPs of a token in the first data stage, attention counted under its
    causal mask."""
    length = config.stages[0].seq_length
    rows = planned_vocabulary(config)
    return train_flops_per_token(config.model, rows, length, config.objective)[0]


def flops_per_step(config: Config) -> float:
    """Return those of a step."""
    return tokens_per_step(config) * flops_per_token(config)
