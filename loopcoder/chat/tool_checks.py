"""Calls against the tools that there are."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from loopcoder.chat.conversation import ToolCall

TYPES: Mapping[str, type | tuple[type, ...]] = {
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "string": str,
    "array": list,
    "object": dict,
    "null": type(None),
}


def function_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return name, description and parameters of a tool, in OpenAI's form or without its frame."""
    found = tool.get("function", tool)
    return found if isinstance(found, Mapping) else {}


def schema_of(name: str, tools: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the schemas of a function's parameters by name; none of an unknown one."""
    return _properties(_parameters(name, tools) or {})


def check_call(call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> str | None:
    """Say what is wrong with a call; None: nothing.

    The schema is applied as a whole where the package jsonschema is installed; else its required
    parameters and the types of the parameters.
    """
    schema = _parameters(call.name, tools)
    if schema is None:
        return f"unknown function {call.name}"
    if importlib.util.find_spec("jsonschema") is not None:
        return _by_jsonschema(call.arguments, schema)
    missing = [name for name in schema.get("required") or [] if name not in call.arguments]
    if missing:
        return f"{missing[0]} is missing"
    for name, about in _properties(schema).items():
        kind = about.get("type") if isinstance(about, Mapping) else None
        if name in call.arguments and not has_type(call.arguments[name], kind):
            return f"{name} is not of type {kind}"
    return None


def has_type(value: Any, kind: Any) -> bool:
    """Say whether a value is of a type of JSON schemas, of one of several, or there is none."""
    if isinstance(kind, list):
        return any(has_type(value, one) for one in kind)
    if not isinstance(kind, str) or kind not in TYPES:
        return True
    if isinstance(value, bool):
        return bool(kind == "boolean")
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, TYPES[kind])


def _parameters(name: str, tools: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the schema of a function's arguments; None: there is no such function."""
    for function in map(function_of, tools):
        if function.get("name") == name:
            return function.get("parameters") or {}
    return None


def _properties(schema: Any) -> Mapping[str, Any]:
    found = schema.get("properties") if isinstance(schema, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _by_jsonschema(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str | None:
    import jsonschema
    from referencing import Registry

    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    validator = kind(schema, registry=Registry())  # an empty one, which fetches nothing
    try:
        found = next(validator.iter_errors(arguments), None)
    except Exception as error:  # a schema is written by somebody else
        return f"the schema cannot be applied: {type(error).__name__}: {error}"[:300]
    if found is None:
        return None
    place = ".".join(map(str, found.absolute_path))
    return f"{place + ': ' if place else ''}{found.message}"[:300]
