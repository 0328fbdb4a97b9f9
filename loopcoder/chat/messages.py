"""Messages and tools in the one form that templates read, whoever sends them: rows that are trained
on, requests to a server, files. What is answered is thus written as what was learned."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from reprlib import repr as shortened
from typing import Any

from loopcoder.chat.unusable import Unusable

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields of reasoning; the first is the one that templates read."""
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
NAME = re.compile(r"[^<>\s]+")
"""Of functions and parameters: templates write them within tags, where others could end the tag, or
make a special token of what stands around them."""
_OF_CALLS = {"name", "type", "id", "index"}
"""Fields of a call besides its arguments; what else one has would be arguments by another name."""
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)


def normalised(given: Any, *, splits_reasoning: bool = True) -> dict[str, Any]:
    """Return a message with OpenAI's fields.

    `role` has OpenAI's name, `content` is a text, `reasoning_content` and `tool_calls` (arguments
    are objects) are there where the assistant has some. Fields that are not known stay.

    Args:
        given: OpenAI's (`role`, `content`) or ShareGPT's (`from`, `value`).
        splits_reasoning: Whether a `<think>` block that content begins with is reasoning.

    Raises:
        Unusable: it is no message.
    """
    if not isinstance(given, Mapping):
        raise Unusable("missing_role", f"a message {shortened(given)}")
    rest = {name: value for name, value in given.items() if value is not None}
    if "role" not in rest and "from" in rest:
        rest["role"], rest["content"] = rest.pop("from"), rest.pop("value", None)
    role, content = rest.pop("role", None), rest.pop("content", None)
    if role is None:
        raise Unusable("missing_role", f"a message {shortened(dict(given))}")
    if not isinstance(role, str):
        raise Unusable("unknown_role", f"role={shortened(role)}")
    if role == "function_call":
        calls = loaded(content, "invalid_tool_json")
        rest["tool_calls"], content = calls if isinstance(calls, list) else [calls], None
    role = _ROLES.get(role, role)
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
    inner = frame.pop("function", frame)
    if not isinstance(inner, Mapping):
        raise Unusable("invalid_tool_json", f"a call {shortened(given)}")
    call_id = frame.pop("id", None)
    more = {} if inner is frame else frame
    name, arguments = inner.get("name"), inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str):
        arguments = loaded(arguments, "invalid_tool_json") if arguments.strip() else {}
    if arguments is None:
        given_else = {name for name, value in inner.items() if value is not None} - _OF_CALLS
        if given_else:
            raise Unusable("invalid_tool_json", f"a call with {shortened(sorted(given_else))}")
        arguments = {}
    is_name = isinstance(name, str) and NAME.fullmatch(name)
    if not is_name or not isinstance(arguments, Mapping):
        what = f"name={shortened(name)}, arguments={shortened(arguments)}"
        raise Unusable("invalid_tool_json", what)
    out: dict[str, Any] = {} if call_id is None else {"id": str(call_id)}
    function = {"name": name, "arguments": dict(arguments)}
    return out | {"type": "function", "function": function} | more


def normalised_tools(given: Iterable[Any]) -> list[dict[str, Any]]:
    """Return tools as OpenAI's `{type: function, function: {...}}`, which may come without frame.

    Raises:
        Unusable: one is no schema of a function, or has the name of another.
    """
    tools, names = [], set()
    for one in given:
        tool = one
        if isinstance(one, Mapping) and "function" not in one and "name" in one:
            tool = {"function": dict(one)}
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


def loaded(text: Any, reason: str) -> Any:
    """Return what a text is as JSON, in which NaN is no number, and no object has a key twice.

    Raises:
        Unusable: with this reason: it is none.
    """
    try:
        return DECODER.decode(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise Unusable(reason, f"{shortened(text)}: {str(error)[:100]}") from error


def spelled_in(value: Any, tokens: Iterable[str]) -> str | None:
    """Return a special token that a text within a value of JSON spells; None: none does."""
    pattern = any_of(tuple(tokens))
    return next((found[0] for text in _texts(value) if (found := pattern.search(text))), None)


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
        calls = loaded(calls, "invalid_tool_json") or []
    if (old := message.pop("function_call", None)) is not None:  # OpenAI's before there were tools
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


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shortened(twice)} stands there twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse)
"""Of JSON in rows: what it cannot keep whole it refuses with a ValueError."""
