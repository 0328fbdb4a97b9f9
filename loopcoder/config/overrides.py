"""Read `key=value`: Hydra's grammar for the structure, the schema for what is text.

Hydra reads 1.10, 1e5, 007 and 2024_11 by their looks, and a number does not keep its digits. Here a
value is a number only where the schema has one: a text is what was written. Quotes around the whole
and backslashes before Hydra's special characters are taken away, as in Hydra; an unquoted `null` is
null where the field may be; commas separate the values of a sweep.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from antlr4 import CommonTokenStream, InputStream, ParserRuleContext
from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.overrides_visitor import HydraOverrideVisitor
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, Sweep
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser

from loopcoder.config.fields import FieldAt, arms, placeholder, typed
from loopcoder.config.mistakes import takes
from loopcoder.config.schema import Config
from loopcoder.errors import Problem

_ALIASES = {"path": "data.path"}
_NUMBER = re.compile(r"[\d.eE+-]+")
_NEEDS_QUOTES = "~ []{}()'\":="
"""Signs that Hydra reads as something else in a list."""
_ESCAPED = re.compile(r"\\([\\()\[\]{}:=, \t])")


def parse_overrides(
    overrides: Sequence[str], problems: list[Problem], schema: type[Any] = Config
) -> list[Override]:
    """Parse overrides and resolve aliases; what cannot be parsed is added to `problems`."""
    parser, root = OverridesParser.create(), FieldAt(schema)
    parsed = []
    for text in overrides:
        try:
            override = _read(parser, root, text)
        except HydraException:
            fix = "loopcoder train train.max_steps=100 'run_dir=\"my run\"'"
            if _field(root, text) is not None:
                fix = f"{text}={placeholder(root, _ALIASES.get(text, text))}"
            why = "an override is key=value; spaces, commas and brackets need quotes"
            key, _, written = text.partition("=")
            if meant := in_brackets(_field(root, key), key, written):
                why, fix = "several values are a list, written [a,b]", typed(meant)
            problems.append(Problem(f"cannot read {text!r}", why, fix))
            continue
        if override._value == "" and is_text(_field(root, override.key_or_group)):
            why = "it is empty, as where a variable of the shell is not set"
            key = override.key_or_group
            problems.append(
                Problem(text, why, f"{key}={placeholder(root, key)}, or leave {key}= out")
            )
        else:
            parsed.append(override)
    return parsed


def in_brackets(at: FieldAt | None, key: str, written: str) -> str | None:
    """Return the override that was meant by values with commas and without brackets: a list or a
    mapping; None: the field takes neither."""
    parts = written.split(",")
    if at is None or len(parts) < 2 or not all(parts):
        return None
    pairs = [part.partition(":")[::2] for part in parts]
    if all(_NUMBER.fullmatch(value) for _, value in pairs):
        weights = {name: yaml.safe_load(value) for name, value in pairs}
        return f"{key}={{{written}}}" if takes(at, weights) else None
    values = [yaml.safe_load(part) if _NUMBER.fullmatch(part) else part for part in parts]
    if not takes(at, values) and not takes(at, parts):
        return None
    return f"{key}=[{','.join(quoted(p) if set(p) & set(_NEEDS_QUOTES) else p for p in parts)}]"


def quoted(text: str) -> str:
    """Write a text so that an override reads it back, whatever it looks like."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def is_text(at: FieldAt | None) -> bool:
    """Say whether a field takes text."""
    return at is not None and any(arm in (str, Path) for arm in arms(at.annotation))


def _read(parser: OverridesParser, root: FieldAt, text: str) -> Override:
    """Parse one override; raise HydraException where it is none."""
    key, _, written = text.partition("=")
    try:
        override = parser.parse_override(text)
    except HydraException:
        # Hydra's grammar has no unquoted ~, no umlaut and no single bracket.
        forbidden = "," if is_text(_field(root, key.lstrip("+"))) else "[]{}()'\","
        if not written or set(written) & set(forbidden):
            raise
        override = parser.parse_override(f"{key}=text")
        override.input_line = text
        override._value = _unescaped(written)
    alias = _ALIASES.get(override.key_or_group, "")
    if not root.at([override.key_or_group]) and root.at(alias.split(".")):
        override.key_or_group = alias
    if override.is_delete() or override._value == _unescaped(written):
        return override
    at = _field(root, override.key_or_group)
    if _is_one_text(at, override._value):
        is_null = written == "null" and NoneType in arms(at.annotation)  # type: ignore[union-attr]
        override._value = None if is_null else _unescaped(written)
    else:
        override._value = _as_written(at, override._value, _texts_of(text))
    return override


def _field(root: FieldAt, key: str) -> FieldAt | None:
    if not root.at([key]):
        key = _ALIASES.get(key, key)
    return root.at(key.split("."))


def _is_one_text(at: FieldAt | None, value: Any) -> bool:
    """Say whether a value is one text: not quoted, no sweep, and no list where one is allowed."""
    if not is_text(at) or isinstance(value, QuotedString | Sweep):
        return False
    takes = [getattr(arm, "__origin__", arm) for arm in arms(at.annotation)]  # type: ignore[union-attr]
    return not (isinstance(value, list | dict) and type(value) in takes)


def _unescaped(written: str) -> str:
    return _ESCAPED.sub(r"\1", written)


class _Texts(HydraOverrideVisitor):
    """Hydra's reading of an override with every number, true and null left as it was written."""

    def _createPrimitive(self, ctx: ParserRuleContext) -> Any:  # noqa: N802 - Hydra's name
        value = super()._createPrimitive(ctx)
        return value if isinstance(value, str | QuotedString) else ctx.getText().strip()


def _texts_of(text: str) -> Any:
    """Return the value of an override that Hydra can parse, with texts as its leaves."""
    parser: Any = OverrideParser(CommonTokenStream(OverrideLexer(InputStream(text))))
    tree = parser.override()
    try:
        return _Texts(create_functions()).visit(tree)._value
    except HydraException:
        return None  # a function of numbers, range(1,4), which is no text anywhere


def _as_written(at: FieldAt | None, value: Any, text: Any) -> Any:
    """Take from a value what the schema has as numbers, and from its texts all else.

    What the schema does not know is the name of a preset, or a mistake that is shown as written.
    """
    if text is None or isinstance(value, QuotedString):
        return value
    if isinstance(value, ChoiceSweep):
        pairs = zip(value.list, text.list, strict=True)
        return dataclasses.replace(value, list=[_as_written(at, v, t) for v, t in pairs])
    if isinstance(value, Sweep):
        return value
    if isinstance(value, list):
        entry = at and at.at([0])
        return [_as_written(entry, v, t) for v, t in zip(value, text, strict=True)]
    if isinstance(value, dict):
        pairs = zip(value.values(), text.items(), strict=True)
        return {key: _as_written(at and at.at([key]), v, t) for v, (key, t) in pairs}
    if value is None and not (is_text(at) and text != "null"):
        is_nullable = not is_text(at) or NoneType in arms(at.annotation)  # type: ignore[union-attr]
        return None if is_nullable else text
    return text if at is None or at.sections or is_text(at) else value
