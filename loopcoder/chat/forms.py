"""The forms in which data sets keep conversations, brought into OpenAI's.

Nothing is judged here beyond what is needed to read a form; `conversation.parse` does that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from loopcoder.chat.unusable import Unusable

Row = Mapping[str, Any]

_LISTS = ("messages", "conversations", "conversation")
"""Columns with messages, OpenAI's (`role`, `content`) or ShareGPT's (`from`, `value`)."""
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"))
"""Columns of rows with one question and its answer."""
_TOOLS = ("tools", "functions")
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
"""Names of roles besides OpenAI's own."""


def messages_of(row: Row, field: str | None = None) -> list[dict[str, Any]]:
    """Return the messages of a row with OpenAI's fields, roles by OpenAI's names.

    Args:
        field: Column with the messages; None: the first that is there of `messages`,
            `conversations`, `conversation`, `prompt` and `completion` (`response`), `instruction`
            (and `input`) and `output`.

    Raises:
        Unusable: there are none.
    """
    found: Any
    if field is not None:
        found = row.get(field)
    else:
        found = next((row[name] for name in _LISTS if row.get(name) is not None), None)
        if found is None:
            found = _pair(row)
    if isinstance(found, str):
        found = loaded(found, "no_messages")
    if not isinstance(found, list) or not found:
        names = ", ".join(map(str, row)) or "nothing"
        raise Unusable("no_messages", f"the row has {names}"[:300])
    messages = [_message(one) for one in found]
    system = row.get("system")
    if isinstance(system, str) and system and messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def tools_of(row: Row, field: str | None = None) -> list[Any]:
    """Return the tools of a row, each as OpenAI's `{type: function, function: {...}}` if it is an
    object at all.

    Args:
        field: Their column; None: `tools` or `functions`. Text is read as JSON.

    Raises:
        Unusable: they are no list.
    """
    names = _TOOLS if field is None else (field,)
    found: Any = next((row[name] for name in names if row.get(name) is not None), [])
    if isinstance(found, str):
        found = loaded(found, "bad_tools") if found.strip() else []
    if found is None:
        return []
    if not isinstance(found, list):
        raise Unusable("bad_tools", f"tools={found!r}"[:300])
    return [_tool(one) for one in found]


def calls_of(message: Row) -> Iterator[tuple[Any, Any, Any]]:
    """Yield (name, arguments, id) of a message's calls, as they stand there.

    Raises:
        Unusable: they are no list of objects.
    """
    calls = message.get("tool_calls") or []
    if message.get("function_call") is not None:  # OpenAI's own before there were tools
        calls = [message["function_call"]]
    if not isinstance(calls, list):
        raise Unusable("invalid_tool_json", f"tool_calls={calls!r}"[:300])
    for call in calls:
        inner = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(inner, Mapping):
            raise Unusable("invalid_tool_json", f"a call {call!r}"[:300])
        yield inner.get("name"), inner.get("arguments", inner.get("parameters")), call.get("id")


def _pair(row: Row) -> list[Any] | None:
    for asked, answered in _PAIRS:
        question, answer = row.get(asked), row.get(answered)
        if question is None or answer is None:
            continue
        if asked == "instruction" and isinstance(row.get("input"), str) and row["input"]:
            question = f"{question}\n\n{row['input']}"
        return [*_said("user", question), *_said("assistant", answer)]
    return None


def _said(role: str, what: Any) -> list[Any]:
    return what if isinstance(what, list) else [{"role": role, "content": what}]


def _message(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise Unusable("missing_role", f"a message {given!r}"[:300])
    message = {name: value for name, value in given.items() if value is not None}
    if "role" not in message and "from" in message:
        message["role"] = message.pop("from")
        message["content"] = message.pop("value", None)
    role = message.get("role")
    if role == "function_call":
        calls = loaded(message.get("content"), "invalid_tool_json")
        message["tool_calls"] = calls if isinstance(calls, list) else [calls]
        message["content"] = ""
    if isinstance(role, str):
        message["role"] = _ROLES.get(role, role)
    return message


def _tool(given: Any) -> Any:
    if isinstance(given, Mapping) and "function" not in given and "name" in given:
        return {"type": "function", "function": dict(given)}
    return given


def loaded(text: Any, reason: str) -> Any:
    """Return what a text is as JSON, in which NaN is no number."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, TypeError, RecursionError) as error:
        raise Unusable(reason, f"{text!r}"[:200] + f": {error}"[:100]) from error


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
