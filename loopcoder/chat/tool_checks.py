"""Calls against the tools that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loopcoder.backends import require
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
    """Say what is wrong with a call by the schema of its function; None: nothing.

    Raises:
        InputError: jsonschema, which applies schemas, is not installed.
    """
    schema = _parameters(call.name, tools)
    if schema is None:
        return f"unknown function {call.name}"
    jsonschema = package()
    from referencing import Registry

    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    validator = kind(schema, registry=Registry())  # an empty one, which fetches nothing
    try:
        found = next(validator.iter_errors(call.arguments), None)
    except Exception as error:  # a schema is written by somebody else
        return f"the schema cannot be applied: {type(error).__name__}: {error}"[:300]
    return None if found is None else _in_words(found)


def check_schema(schema: Mapping[str, Any]) -> str | None:
    """Say what is wrong with the schema of a function's arguments; None: nothing.

    Raises:
        InputError: jsonschema is not installed.
    """
    jsonschema = package()
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    any_format = jsonschema.FormatChecker(formats=())  # patterns are JavaScript's, not Python's
    try:
        kind.check_schema(schema, format_checker=any_format)
    except jsonschema.SchemaError as error:
        return _in_words(error)
    except Exception as error:  # too deep, or a $schema that is no text
        return f"{type(error).__name__}: {error}"[:300]
    return None


def package() -> Any:
    """Return jsonschema.

    Raises:
        InputError: it is not installed.
    """
    fact, why = "calls of tools are checked by their schemas", "jsonschema is not installed"
    return require("jsonschema", fact, why, "pip install 'jsonschema>=4.23,<5'")


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


def _in_words(error: Any) -> str:
    place = ".".join(map(str, error.absolute_path))
    return f"{place + ': ' if place else ''}{error.message}"[:300]
