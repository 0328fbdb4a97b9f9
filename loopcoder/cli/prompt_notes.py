"""What is said of prompts that can be answered, but not as the model was trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from loopcoder.cli.given_prompts import GivenPrompt

if TYPE_CHECKING:
    from loopcoder.infer.prompts import Prompts
    from loopcoder.infer.request import Request
    from loopcoder.infer.sources import Source

_EMPTY = (
    "the prompt is empty: the answer begins behind the token {token}, as a document does; models "
    "that were trained here have not learned how documents begin"
)
_PRETRAINED = (
    "the weights come without a chat template of their own: they were pretrained on documents, and "
    "the conversation is written in the default one, ChatML, which they have not learned"
)
_LONG = (
    "a prompt has {tokens:,} tokens, and the model was trained on sequences of {trained:,}: what "
    "it writes behind them may be poor"
)


def notes_on(
    given: Sequence[GivenPrompt],
    requests: Sequence[Request],
    source: Source,
    made: Prompts,
    *,
    is_chat: bool,
) -> Iterator[str]:
    """Yield a line for each thing that makes answers poorer than the model is, as far as the
    weights tell it."""
    if is_chat and (source.specials is None or source.specials.chat_template is None):
        yield _PRETRAINED
    if not is_chat and any(prompt.text == "" for prompt in given):
        yield _EMPTY.format(token=made.tokenizer.id_to_token(made.begin_id))
    longest = max(len(request.ids) for request in requests)
    if (trained := _trained_length(source)) is not None and longest > trained:
        yield _LONG.format(tokens=longest, trained=trained)


def _trained_length(source: Source) -> int | None:
    """Return the longest sequence, in tokens, that a run had; None: the weights were imported, or
    those that it began with, and nothing tells how they were trained."""
    said = source.specials
    began_elsewhere = said is not None and (said.ids or said.names or said.generation_config)
    if source.corpus is None or began_elsewhere:
        return None
    return max(stage.seq_length for stage in source.config.stages)
