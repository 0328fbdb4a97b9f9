"""Ids of a conversation, and which of them are learned."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopcoder.chat.conversation import Conversation, Message, canonical
from loopcoder.chat.messages import any_of, spelled_in
from loopcoder.chat.render import Renderer, Span
from loopcoder.chat.unusable import Unusable
from loopcoder.config.chat import ChatConfig
from loopcoder.config.types import LearnedReasoning

_WORD = re.compile(r"\S+")


def tokenise(
    renderer: Renderer, tokenizer: Any, conversation: Conversation, chat: ChatConfig
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return ids and which of them are learned as labels, both [tokens]; no end of a document is
    added.

    A token is learned when any of its characters is the assistant's.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        conversation: As `prepared` returns it.

    Raises:
        Unusable: it cannot be written, spells a special token, or nothing of it is learned.
    """
    refused = renderer.special if chat.special_tokens == "drop" else ()
    if spelled := spelled_in(canonical(conversation), refused):
        raise Unusable("special_token_in_text", spelled)
    reasoning: LearnedReasoning = "context" if chat.reasoning == "context" else "train"
    text, spans = renderer.with_spans(conversation, reasoning=reasoning, turns=chat.turns)
    if chat.special_tokens == "drop" and (joined := _joined(renderer, text, neutral(conversation))):
        raise Unusable("special_token_in_text", joined)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    mask = covered(encoding.offsets, spans)
    if not mask.any():
        raise Unusable("nothing_to_train")
    return np.array(encoding.ids, dtype=np.int32), mask


def prepared(conversation: Conversation, chat: ChatConfig) -> Conversation:
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


def _joined(renderer: Renderer, text: str, likeness: Conversation) -> str | None:
    """Return a special token that the template makes of what somebody says and what it writes
    around it, as `<tag=` + name + `>`: it is not in a likeness; None: there is none."""
    pattern = any_of(tuple(renderer.special))
    found = Counter(pattern.findall(text))
    found.subtract(pattern.findall(renderer.whole(likeness)))
    return next((token for token, more in found.items() if more > 0), None)


def neutral(conversation: Conversation) -> Conversation:
    """Return a conversation that says nothing in the same places: an x for each word, of names
    and arguments too."""
    messages = tuple(
        replace(
            message,
            content=_crossed_out(message.content),
            reasoning=message.reasoning and _crossed_out(message.reasoning),
            tool_calls=tuple(
                replace(call, name="x", arguments=_crossed_out(call.arguments))
                for call in message.tool_calls
            ),
            name=message.name and "x",
        )
        for message in conversation.messages
    )
    named = ({**tool, "function": {**tool["function"], "name": "x"}} for tool in conversation.tools)
    return replace(conversation, messages=messages, tools=tuple(named))


def _crossed_out(value: Any) -> Any:
    """Return JSON with an x for each word; keys are x0, x1, ..."""
    if isinstance(value, str):
        return _WORD.sub("x", value)
    if isinstance(value, dict):
        return {f"x{i}": _crossed_out(one) for i, one in enumerate(value.values())}
    return [_crossed_out(one) for one in value] if isinstance(value, list) else value
