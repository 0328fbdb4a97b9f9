"""Messages and tools in the one form that templates read, whoever sends them: rows that are trained
on, requests to a server, files. What is answered is thus written as what was learned."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from reprlib import repr as shortened
from typing import Any

from loopcoder.chat.unusable import Unusable
from loopcoder.chat.values import loaded

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields of reasoning; the first is the one that templates read."""
_ROLES = {
    **{name: name for name in ("system", "user", "assistant", "tool")},
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
"""OpenAI's name of each role, by all names that roles have; case does not matter."""
_CONTENTS = ("content", "value")
NAME = re.compile(r"[^<>\s]+")
"""Of functions and parameters: templates write them within tags, where others could end the tag, or
make a special token of what stands around them."""
_ARGUMENTS = ("arguments", "parameters")
_OF_CALLS = {"name", "type", "id", "index", *_ARGUMENTS}
"""Fields of a call besides its arguments; what else one has would be arguments by another name."""
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)


def normalised(given: Any, *, splits_reasoning: bool = True) -> dict[str, Any]:
    """Return a message with OpenAI's fields.

    `role` has OpenAI's name, `content` is a text, `reasoning_content` and `tool_calls` (arguments
    are objects) are there where the assistant has some. Fields that are not known stay.

    Args:
        given: OpenAI's (`role`, `content`) or ShareGPT's (`from`, `value`); a content may have the
            name of the other form, or be a `text` where there is none.
        splits_reasoning: Whether a `<think>` block that content begins with is reasoning.

    Raises:
        Unusable: it is no message.
    """
    if not isinstance(given, Mapping):
        raise Unusable("missing_role", f"a message {shortened(given)}")
    rest = {name: value for name, value in given.items() if value is not None}
    role, content = rest.pop("role", None), _content(rest)
    if role is None:
        role = rest.pop("from", None)
    if role is None:
        raise Unusable("missing_role", f"a message {shortened(dict(given))}")
    if not isinstance(role, str):
        raise Unusable("unknown_role", f"role={shortened(role)}")
    if role.lower() == "function_call":
        calls = loaded(content, "invalid_tool_json", or_python=True)
        rest["tool_calls"], content = calls if isinstance(calls, list) else [calls], None
    role = _ROLES.get(role.lower(), role)
    content, calls = _text(content, role), list(_calls(rest))
    if role != "assistant":
        if calls:
            raise Unusable("invalid_tool_json", f"tool_calls of a message with role={role}")
        return {"role": role, "content": content, **rest}
    reasoning = next((value for name in REASONING if (value := rest.pop(name, None))), None)
    if reasoning is not None and not isinstance(reasoning, str):
        raise Unusable("content_not_text", f"reasoning={shortened(reasoning)}")
    while splits_reasoning and reasoning is None and (thought := _THOUGHT.match(content)):
        reasoning, content = thought[1].strip("\n") or None, content[thought.end() :]
    out: dict[str, Any] = {"role": role, "content": content}
    if reasoning is not None:
        out["reasoning_content"] = reasoning
    if calls:
        out["tool_calls"] = [normalised_call(call) for call in calls]
    return out | rest


def normalised_call(given: Any) -> dict[str, Any]:
    """Return a call as OpenAI's, its arguments an object.

    Raises:
        Unusable: it is none.
    """
    frame = dict(given) if isinstance(given, Mapping) else {}
    inner = frame.pop("function", None)
    more, inner = ({}, frame) if inner is None else (frame, inner)
    if not isinstance(inner, Mapping):
        raise Unusable("invalid_tool_json", f"a call {shortened(given)}")
    call_id = frame.pop("id", None)
    name, arguments = inner.get("name"), _arguments(inner, more)
    if isinstance(arguments, str):
        arguments = loaded(arguments, "invalid_tool_json", or_python=True)
    is_name = isinstance(name, str) and NAME.fullmatch(name)
    if not is_name or not isinstance(arguments, Mapping):
        what = f"name={shortened(name)}, arguments={shortened(arguments)}"
        raise Unusable("invalid_tool_json", what)
    out: dict[str, Any] = {} if call_id is None else {"id": str(call_id)}
    function = {"name": name, "arguments": dict(arguments)}
    return out | {"type": "function", "function": function} | more


def normalised_tools(given: Iterable[Any]) -> list[dict[str, Any]]:
    """Return tools as OpenAI's `{type: function, function: {...}}`, which may come without frame,
    and each as JSON in a string.

    Raises:
        Unusable: one is no schema of a function, or has the name of another.
    """
    tools, names = [], set()
    for one in given:
        tool = loaded(one, "bad_tools") if isinstance(one, str) else one
        if isinstance(tool, Mapping) and "function" not in tool and "name" in tool:
            tool = {"function": dict(tool)}
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping):
            raise Unusable("bad_tools", f"a tool {shortened(one)}")
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in names:
            raise Unusable("bad_tools", f"a tool of the name {shortened(name)}")
        if parameters is not None and not isinstance(parameters, Mapping):
            raise Unusable("bad_tools", f"{name}: parameters={shortened(parameters)}"[:300])
        names.add(name)
        tools.append({"type": "function", **tool})
    return tools


def spelled_in(value: Any, tokens: Iterable[str]) -> str | None:
    """Return a special token that a text within a value of JSON spells; None: none does."""
    pattern = any_of(tuple(tokens))
    return next((found[0] for text in _texts(value) if (found := pattern.search(text))), None)


def _content(message: dict[str, Any]) -> Any:
    """Take the content out of a message, by whichever name it has."""
    found = [value for name in _CONTENTS if (value := message.pop(name, None)) is not None]
    if not found:
        return message.pop("text", None)
    contents = [value for value in found if not _is_blank(value)] or found
    if any(value != contents[0] for value in contents):
        raise Unusable("content_not_text", f"content and value: {shortened(contents)}")
    return contents[0]


def _arguments(call: Mapping[str, Any], frame: dict[str, Any]) -> Any:
    """Return the arguments of a call, which may stand in its frame; they are taken out of that.

    Raises:
        Unusable: it has several, or fields that would be arguments by another name.
    """
    named = [call.get(name) for name in _ARGUMENTS] + [frame.pop(name, None) for name in _ARGUMENTS]
    there = [value for value in named if value is not None]
    found = [value for value in there if value not in ({}, "{}") and not _is_blank(value)]
    if any(value != found[0] for value in found):
        raise Unusable("invalid_tool_json", f"a call with several arguments: {shortened(found)}")
    if found:
        return found[0]
    fields = [*call.items(), *(() if there else frame.items())]
    if other := {name for name, value in fields if value is not None} - _OF_CALLS:
        raise Unusable("invalid_tool_json", f"a call with {shortened(sorted(map(str, other)))}")
    return {}


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _text(content: Any, role: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(_is_text(part) for part in content):
        return "".join(part["text"] for part in content)
    if role == "tool":  # functions return anything
        try:
            return json.dumps(content, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            pass
    raise Unusable("content_not_text", f"role={role}, content={shortened(content)}"[:300])


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("type", "text") == "text"
        and isinstance(part.get("text"), str)
    )


def _calls(message: dict[str, Any]) -> Iterator[Any]:
    """Take the calls out of a message."""
    calls = message.pop("tool_calls", None) or []
    if isinstance(calls, str):
        calls = loaded(calls, "invalid_tool_json", or_python=True) or []
    old = message.pop("function_call", None)  # OpenAI's before there were tools
    if old is not None and old != "":
        if calls:
            raise Unusable("invalid_tool_json", "a message with tool_calls and function_call")
        calls = [old]
    if not isinstance(calls, list | tuple):
        raise Unusable("invalid_tool_json", f"tool_calls={shortened(calls)}")
    yield from calls


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts within a value, keys too; it may be deeper than Python can recurse."""
    left = [value]
    while left:
        match left.pop():
            case str(text):
                yield text
            case list() | tuple() as items:
                left.extend(items)
            case Mapping() as fields:
                left.extend(fields)
                left.extend(fields.values())


@lru_cache
def any_of(texts: tuple[str, ...]) -> re.Pattern[str]:
    """Return what finds any of some texts; of none nothing."""
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")
