"""Tool calls as models write them: what stands between `<tool_call>` and `</tool_call>`.

hermes (also Qwen3's) is a JSON object; qwen3_coder is tags, in which a value stands as it is:

    {"name": "f", "arguments": {"x": 1}}

    <function=f>
    <parameter=x>
    1
    </parameter>
    </function>
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic_core import from_json

from loopcoder.chat.conversation import ToolCall
from loopcoder.chat.tool_checks import TYPES, has_type, schema_of

CallFormat = Literal["hermes", "qwen3_coder"]
OPEN, CLOSE = "<tool_call>", "</tool_call>"
BEGINNINGS: Mapping[CallFormat, str] = {"hermes": "{", "qwen3_coder": "<function="}
"""What a call begins with, after blanks."""

CODER_TAGS = (OPEN, CLOSE, "<function=", "</function>", "<parameter=", "</parameter>")
"""What qwen3_coder writes around values, which may have them in it."""
_IN_A_STRING = "EOF while parsing a string"
"""What the parser says of JSON that is right until it ends within a string."""
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>")
_PARAMETER_END = re.compile(r"</parameter>(?=\s*(?:<parameter=|\Z))")
_BOOLEANS = {"true": True, "false": False}


class NotACall(ValueError):
    """What stands between the tags is no call; the message says why."""


def read_call(text: str, format: CallFormat, tools: Sequence[Mapping[str, Any]]) -> ToolCall | None:
    """Read the text from behind `<tool_call>` to a `</tool_call>`.

    Args:
        tools: Their schemas say which values of qwen3_coder are no strings.

    Returns:
        the call, without an id; None: that `</tool_call>` stands inside of a value, and the call
        goes on behind it.

    Raises:
        NotACall: it is none, however it goes on.
    """
    return _hermes(text) if format == "hermes" else _qwen3_coder(text, tools)


def _hermes(text: str) -> ToolCall | None:
    try:
        found = from_json(text, allow_inf_nan=False)
        json.dumps(found, allow_nan=False)  # 1e999 is read as an infinity
    except ValueError as error:
        if _IN_A_STRING in str(error):
            return None
        raise NotACall(f"no JSON: {error}") from None
    if not isinstance(found, dict) or found.keys() != {"name", "arguments"}:
        raise NotACall("no object of name and arguments")
    name, arguments = found["name"], found["arguments"]
    if not isinstance(name, str) or not name:
        raise NotACall("name is no text")
    if not isinstance(arguments, dict):
        raise NotACall("arguments is no object")
    return ToolCall(name, arguments)


def _qwen3_coder(text: str, tools: Sequence[Mapping[str, Any]]) -> ToolCall | None:
    arguments: dict[str, Any] = {}
    matched = _FUNCTION.fullmatch(text)
    if matched is None:
        if _is_within_a_value(text):
            return None
        raise NotACall("no <function=NAME> to </function>")
    name, inner = matched[1], matched[2]
    schema, at = schema_of(name, tools), 0
    while (begun := _PARAMETER.match(inner, at)) is not None:
        end = _PARAMETER_END.search(inner, begun.end())
        if end is None:
            if _is_within_a_value(text):
                return None
            raise NotACall(f"parameter {begun[1]} has no end")
        if begun[1] in arguments:
            raise NotACall(f"parameter {begun[1]} stands there twice")
        value = inner[begun.end() : end.start()].removeprefix("\n").removesuffix("\n")
        arguments[begun[1]] = _typed(value, schema.get(begun[1], {}))
        at = end.end()
    if inner[at:].strip():
        raise NotACall("text beside the parameters")
    return ToolCall(name, arguments)


def _is_within_a_value(text: str) -> bool:
    """Say whether the end of a text is in the value of a parameter, which may have any tags."""
    return text.rfind("<parameter=") > text.rfind("</parameter>")


def _typed(value: str, schema: Any) -> Any:
    """Return a value as one of the types that its schema has; as the text that it is where that
    cannot be, or where the schema does not say."""
    types = _types_of(schema)
    if types <= {"string"}:
        return value
    if "boolean" in types and value.lower() in _BOOLEANS:  # Python's words for them too
        return _BOOLEANS[value.lower()]
    if "null" in types and value == "None":
        return None
    try:
        found = from_json(value, allow_inf_nan=False)
        json.dumps(found, allow_nan=False)
    except ValueError:
        return value
    return found if has_type(found, [*types]) else value


def _types_of(schema: Any) -> set[str]:
    """Return the types that a schema names, also in what it chooses from."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type")
    named = named if isinstance(named, list) else [named]
    found = {name for name in named if isinstance(name, str) and name in TYPES}
    for choice in ("anyOf", "oneOf"):
        for one in _listed(schema.get(choice)):
            found |= _types_of(one)
    for value in _listed(schema.get("enum")):
        found |= {name for name in TYPES if has_type(value, name)}
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
