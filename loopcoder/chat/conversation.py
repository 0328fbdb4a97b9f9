"""A conversation: who says what, with reasoning, tools and their calls.

`canonical` is the one form in which conversations are kept and rendered, OpenAI's; `restored` is
its inverse. `parsing` makes conversations of rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
THINK, THOUGHT = "<think>", "</think>"
"""Tags of reasoning."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """What one says at a time."""

    role: Role
    content: str = ""
    reasoning: str | None = None
    """What the assistant thinks first."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """Of a tool's result: the call it answers."""
    name: str | None = None
    """Of a tool's result: the function."""
    train: bool = True
    """False: the model reads it and does not learn it."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, and the tools that the assistant may call."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    """OpenAI's schemas of functions."""


def canonical(conversation: Conversation) -> dict[str, Any]:
    """Return OpenAI's form: `messages`, with what templates read, and `tools` if there are any.

    Arguments are objects; `train` stands at messages that are not trained.
    """
    out: dict[str, Any] = {"messages": [written(one) for one in conversation.messages]}
    if conversation.tools:
        out["tools"] = list(conversation.tools)
    return out


def written(message: Message) -> dict[str, Any]:
    """Return a message as `canonical` does."""
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        out["reasoning_content"] = message.reasoning
    if message.tool_calls:
        out["tool_calls"] = [written_call(call) for call in message.tool_calls]
    for name in ("tool_call_id", "name"):
        if (value := getattr(message, name)) is not None:
            out[name] = value
    return out if message.train else out | {"train": False}


def restored(form: Mapping[str, Any]) -> Conversation:
    """Return the conversation of what `canonical` returned; nothing is checked again."""
    return Conversation(
        tuple(_restored_message(one) for one in form["messages"]), tuple(form.get("tools", ()))
    )


def plain_text(conversation: Conversation) -> str:
    """Return what is said, line by line without roles: what texts are compared by."""
    return "\n".join(text for text in _said(conversation) if text)


def _said(conversation: Conversation) -> Iterator[str]:
    for message in conversation.messages:
        yield message.reasoning or ""
        yield message.content
        for call in message.tool_calls:
            yield call.name
            yield json.dumps(call.arguments, ensure_ascii=False)


def written_call(call: ToolCall) -> dict[str, Any]:
    """Return a call as `canonical` does."""
    function = {"name": call.name, "arguments": call.arguments}
    out: dict[str, Any] = {} if call.id is None else {"id": call.id}
    return out | {"type": "function", "function": function}


def restored_call(form: Mapping[str, Any]) -> ToolCall:
    """Return a call of what `written_call` returned."""
    return ToolCall(**form["function"], id=form.get("id"))


def _restored_message(form: Mapping[str, Any]) -> Message:
    return Message(
        form["role"],
        form["content"],
        form.get("reasoning_content"),
        tuple(map(restored_call, form.get("tool_calls", ()))),
        form.get("tool_call_id"),
        form.get("name"),
        form.get("train", True),
    )
