"""The section `eval`: what is evaluated while a run trains, and how often."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from pydantic.dataclasses import dataclass

from loopcoder.config.types import (
    STRICT,
    Changes,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)

_NEW = Changes("numbers", since="2026-11-29")
_SAMPLES = Changes("nothing", since="2026-11-30")


@dataclass(frozen=True, config=STRICT)
class EvalConfig:
    """Evaluation on the held-out documents."""

    interval: PositiveInt | None = 100
    """Steps between evaluations; null: only at the end."""
    at_end: bool = True
    """Evaluate after the last step."""
    sequences_per_domain: PositiveInt = 64
    """Held-out sequences of each domain, of the length of the current data stage; fewer if there
    are fewer, which is said at the start."""
    lengths: Annotated[list[PositiveInt] | None, _NEW] = None
    """Further lengths, in tokens: `val/loss/len<length>` is the loss of the same tokens as
    `val/loss`, which is at the length of the current data stage, in sequences of another length;
    null: at no other."""
    corpora: Annotated[dict[str, str], _NEW] = field(default_factory=dict)
    """Validation sets of one's own, by name: folders or URLs of finished corpora with the tokenizer
    of the run. `val/<name>/loss` is the mean over their held-out documents, each domain with the
    tokens that it has of them; nothing else that is evaluated changes."""
    corpora_sequences: Annotated[PositiveInt | None, _NEW] = None
    """Held-out sequences of each domain of `eval.corpora`; null: all."""
    per_loop: bool = True
    """Also the loss of each loop's output through the head (logit lens)."""
    samples: Annotated[NonNegativeInt, _SAMPLES] = 0
    """Continuations that every evaluation writes to samples.jsonl in the run's folder; 0: none."""
    sample_prompts: Annotated[list[str] | None, _SAMPLES] = None
    """Texts that they continue, in turn; null: beginnings of held-out documents, of each domain in
    turn, and the same ones over the whole run."""
    sample_prompt_tokens: Annotated[PositiveInt, _SAMPLES] = 64
    """Tokens of such a beginning; half of a document that is shorter than twice as long. Of a
    conversation it is all that is before the first answer."""
    sample_tokens: Annotated[PositiveInt, _SAMPLES] = 64
    """Tokens of a continuation, which ends earlier where the document does."""
    sample_temperature: Annotated[NonNegativeFloat, _SAMPLES] = 0.0
    """Of the softmax that their tokens are drawn from; 0: the most probable token each time."""

    @property
    def happens(self) -> bool:
        """Whether anything is evaluated while training."""
        return self.interval is not None or self.at_end
