"""What a step costs, before there is a corpus."""

from __future__ import annotations

from loopcoder.config.schema import Config
from loopcoder.model.flops import train_flops_per_token
from loopcoder.plan.memory import planned_vocabulary


def tokens_per_step(config: Config) -> int:
    """Return the tokens of a step in the first data stage, without a batch ramp."""
    return config.train.global_batch_size * config.stages[0].seq_length


def flops_per_step(config: Config) -> float:
    """Return its training FLOPs, attention counted under its causal mask."""
    length = config.stages[0].seq_length
    causal, _ = train_flops_per_token(config.model, planned_vocabulary(config), length)
    return tokens_per_step(config) * causal
