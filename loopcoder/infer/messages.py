"""Messages of a chat as templates expect them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from loopcoder.errors import InputError


def for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with its content as one text, and the arguments of its calls as objects:
    OpenAI's clients may send a text in parts, and send arguments as JSON in a string.

    Raises:
        InputError: it is no message.
    """
    found = dict(message)
    if not isinstance(found.get("role"), str):
        raise _wrong("has no role")
    content = found.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        found["content"] = "\n".join(map(_text, content))
    elif content is not None and not isinstance(content, str):
        raise _wrong("has a content that is no text")
    if found.get("tool_calls") is not None:
        found["tool_calls"] = _calls(found["tool_calls"])
    return found


def _text(part: Any) -> str:
    if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
        raise _wrong("has a part of content that is no text")
    return str(part["text"])


def _calls(calls: Any) -> list[Any]:
    try:
        return [
            call | {"function": call["function"] | {"arguments": _object(call)}} for call in calls
        ]
    except (TypeError, KeyError, ValueError) as error:
        raise InputError.of(
            "tool_calls of a message",
            "it is a list of {id, type, function: {name, arguments}}, with arguments as an object "
            "or as JSON in a string",
            "calls as an answer of a chat has them",
        ) from error


def _object(call: Mapping[str, Any]) -> Any:
    """Return the arguments of a call; ValueError: they are no JSON, or too deep."""
    arguments = call["function"]["arguments"]
    if isinstance(arguments, str):
        return from_json(arguments, allow_inf_nan=False)
    return arguments


def _wrong(what: str) -> InputError:
    return InputError.of(
        f"a message {what}",
        "a conversation is a list of messages, each with a role and a content",
        "messages of the form {role: user, content: TEXT}",
    )
