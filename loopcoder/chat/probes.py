"""Conversations that a template is tried with: each part of them says a word of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from loopcoder.chat.conversation import Conversation, Message, ToolCall


class Part(NamedTuple):
    """A part of conversations that a template may leave out without a word."""

    conversation: Conversation
    """One that has it."""
    word: str
    """What it says there."""
    reason: str
    """For which conversations that have it are refused."""


_ASKED, _SAID = Message("user", "quince"), Message("assistant", "walnut")
_CALL = Message("assistant", "", tool_calls=(ToolCall("juniper", {"a": "rowan"}, "call00001"),))
_RESULT = Message("tool", "medlar", tool_call_id="call00001", name="juniper")
_TOOL = {
    "type": "function",
    "function": {
        "name": "juniper",
        "description": "It grows.",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
}
_CALLED = Conversation((_ASKED, _CALL, _RESULT, _SAID), (_TOOL,))

PARTS: Mapping[str, Part] = {
    "system": Part(
        Conversation((Message("system", "hazel"), _ASKED, _SAID)), "hazel", "no_place_for_system"
    ),
    "tools": Part(Conversation((_ASKED, _SAID), (_TOOL,)), "juniper", "no_place_for_tools"),
    "calls": Part(_CALLED, "rowan", "no_place_for_tools"),
    "results": Part(_CALLED, "medlar", "no_place_for_tools"),
    "reasoning": Part(
        Conversation((_ASKED, Message("assistant", "walnut", "bramble"))),
        "bramble",
        "no_place_for_reasoning",
    ),
}

_FIRST = _ASKED, _SAID
_BOTH = *_FIRST, Message("user", "sorrel"), Message("assistant", "almond")
ANSWERS, OTHERS = ("walnut", "almond"), ("hazel", "quince", "sorrel")
"""What the assistant says in SPOKEN, and all others."""
SPOKEN = tuple(
    Conversation(messages)
    for messages in (
        (Message("system", "hazel"), *_BOTH),
        _BOTH,
        _FIRST,
    )
)
"""From the longest to one that any template can write."""


def parts_of(conversation: Conversation) -> set[str]:
    """Return which of PARTS a conversation has."""
    messages = conversation.messages
    found = {
        "system": any(m.role == "system" and m.content.strip() for m in messages),
        "tools": bool(conversation.tools),
        "calls": any(m.tool_calls for m in messages),
        "results": any(m.role == "tool" and m.content.strip() for m in messages),
        "reasoning": any(m.reasoning and m.reasoning.strip() for m in messages),
    }
    return {name for name, is_there in found.items() if is_there}
