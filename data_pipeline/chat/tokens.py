"""Ids of a conversation, and which of them are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from loopcoder.chat.conversation import Conversation, Message, canonical
from loopcoder.chat.messages import spelled_in
from loopcoder.chat.render import Renderer, Span, Turns
from loopcoder.chat.unusable import Unusable


class Options(Protocol):
    """What is asked for of conversations (data.build.chat)."""

    @property
    def reasoning(self) -> Literal["train", "context", "drop"]: ...
    @property
    def turns(self) -> Turns: ...
    @property
    def system(self) -> str | None: ...
    @property
    def special_tokens(self) -> Literal["drop", "keep"]: ...


def tokenise(
    renderer: Renderer, tokenizer: Any, conversation: Conversation, chat: Options
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return a conversation's ids and which of them are learned as labels, both [tokens]; no end of
    a document is added.

    A token is learned when any of its characters is the assistant's.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.

    Raises:
        Unusable: it cannot be written, spells a special token, or nothing of it is learned.
    """
    conversation = prepared(conversation, chat)
    refused = renderer.special if chat.special_tokens == "drop" else ()
    if spelled := spelled_in(canonical(conversation), refused):
        raise Unusable("special_token_in_text", spelled)
    reasoning: Literal["train", "context"] = "context" if chat.reasoning == "context" else "train"
    text, spans = renderer.with_spans(conversation, reasoning=reasoning, turns=chat.turns)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    mask = covered(encoding.offsets, spans)
    if not mask.any():
        raise Unusable("nothing_to_train")
    return np.array(encoding.ids, dtype=np.int32), mask


def prepared(conversation: Conversation, chat: Options) -> Conversation:
    """Return a conversation with the system's prompt that is asked for, where it has none, and
    without reasoning where none is wanted."""
    messages = conversation.messages
    if chat.system is not None and messages[0].role != "system":
        messages = (Message("system", chat.system), *messages)
    if chat.reasoning == "drop":
        messages = tuple(replace(message, reasoning=None) for message in messages)
    return replace(conversation, messages=messages)


def covered(offsets: Sequence[Span], spans: Sequence[Span]) -> NDArray[np.bool_]:
    """Return which tokens have a character in a span.

    Args:
        offsets: Characters of each token.
    """
    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    mask = np.zeros(len(offsets), dtype=np.bool_)
    for start, end in spans:
        mask |= (ends > start) & (starts < end)
    return mask
