"""States of checkpoints for tests."""

from __future__ import annotations

from typing import Any

from loopcoder.checkpoint.state import CheckpointState
from loopcoder.data.sampler import Position


def state_at(step: int, **changes: Any) -> CheckpointState:
    """The state of a small run after a step."""
    fields: dict[str, Any] = dict(
        position=Position(step=step, sample=8 * step, samples=8 * step, tokens=256 * step),
        num_loops=2,
        vocab_size=128,
        tokenizer_hash="tokenizer",
        tokenizer_path="/corpus/tokenizer.json",
        corpus="corpus",
        corpus_dir="/corpus",
        config_hash="0123456789",
        world_size=1,
        warmup_steps=5,
    )
    return CheckpointState(**(fields | changes))
