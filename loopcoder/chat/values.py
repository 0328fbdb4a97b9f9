"""Values that rows keep as text: JSON, and the literals of Python that some write in its place."""

from __future__ import annotations

import ast
import json
import warnings
from collections import Counter
from reprlib import repr as shortened
from typing import Any

from loopcoder.chat.unusable import Unusable

_OF_JSON = {"true": True, "false": False, "null": None}
"""Names that stand in literals which were put together from JSON and Python."""


def loaded(text: Any, reason: str, *, or_python: bool = False) -> Any:
    """Return what a text is as JSON, in which NaN is no number, and no object has a key twice.

    Args:
        or_python: What is no JSON may be a literal of Python.

    Raises:
        Unusable: with this reason: it is none.
    """
    try:
        return DECODER.decode(text)
    except (ValueError, TypeError, RecursionError) as error:
        if or_python and isinstance(text, str):
            try:
                return of_python(text)
            except ValueError:
                pass
        raise Unusable(reason, f"{shortened(text)}: {str(error)[:100]}") from error


def of_python(text: str) -> Any:
    """Return a literal of Python as JSON has it; `true`, `false` and `null` may stand in it.

    Raises:
        ValueError: it is none, JSON cannot hold it, or a dict has a key twice.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            tree = _WithoutNames().visit(ast.parse(text.strip(), mode="eval"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                keys = [_key(key) for key in node.keys]
                if len({*keys}) < len(keys):
                    raise ValueError("a key stands there twice")
        return DECODER.decode(json.dumps(ast.literal_eval(tree), allow_nan=False))
    except (TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from error


class _WithoutNames(ast.NodeTransformer):
    """Puts Python's constants in place of JSON's."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_OF_JSON[node.id]) if node.id in _OF_JSON else node


def _key(node: ast.expr | None) -> Any:
    """Return a key as Python compares it: 1, 1.0 and True are the same one."""
    if not isinstance(node, ast.Constant | ast.UnaryOp):
        raise ValueError("a key that JSON does not have")
    return ast.literal_eval(node)


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
