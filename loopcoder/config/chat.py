"""The section `data.build.chat`: how conversations become the tokens of a corpus."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from loopcoder.config.types import STRICT, LearnedReasoning, LearnedTurns

CHECKPOINT = "checkpoint"
"""Value of data.build.tokenizer: that of the checkpoint which checkpoint.init_from names."""


@dataclass(frozen=True, config=STRICT)
class ChatConfig:
    """What of a conversation is trained on, and the template that spells it."""

    template: str | None = None
    """Chat template: null for that of the tokenizer; `chatml`, `hermes`, `qwen3` or `qwen3_coder`;
    or the path of a Jinja file."""
    reasoning: Literal[LearnedReasoning, "drop"] = "train"
    """What the assistant thinks before an answer: trained on, only read by what follows it, or left
    out."""
    turns: LearnedTurns = "all"
    """Which turns of the assistant are trained on; one with `train: false` never is."""
    too_long: Literal["drop", "cut"] = "drop"
    """A conversation of more than data.seq_length tokens: leave it out, or so many of its last
    turns that the first ones fit, and count it."""
    system: str | None = None
    """System prompt of conversations that have none."""
    special_tokens: Literal["drop", "keep"] = "drop"
    """A conversation whose text spells a special token of the tokenizer, such as the end of a turn:
    leave it out and count it, or keep it, in which case the text becomes that token."""
