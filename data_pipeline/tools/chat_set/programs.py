"""Tools from the command lines of programs: what they give to argparse, read from their source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from data_pipeline.tools.chat_set.summaries import act
from data_pipeline.tools.chat_set.tool import Parameter, Tool, arranged, first_sentence

_TYPES = {"int": "integer", "float": "number", "str": "string", "Path": "string"}


def tools_of_module(tree: ast.Module, module: str, source: str, licence: str) -> Iterator[Tool]:
    """Yield a tool for each parser that a module builds and describes by a constant."""
    named = _parsers(tree, module)
    for variable, (program, description) in named.items():
        calls = [
            call
            for call in ast.walk(tree)
            if isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr == "add_argument"
            and ast.unparse(call.func.value) == variable
        ]
        found = [p for call in calls if (p := _parameter(call)) is not None]
        by_name = {p.name: p for p in found}
        parameters = arranged(list(by_name.values()))
        told = first_sentence(description)
        name = re.sub(r"\W+", "_", program).strip("_")[:64]
        task = act(told) or f"run `{name}`"
        if parameters and name and told:
            yield Tool(name, told, task, parameters, f"{source}:{module}", licence, "program")


def _parsers(tree: ast.Module, module: str) -> dict[str, tuple[str, str]]:
    """Return the program and its description by the variable that holds its parser."""
    docstring = ast.get_docstring(tree) or ""
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            continue
        called = ast.unparse(node.value.func).split(".")[-1]
        given = {k.arg: _constant(k.value) for k in node.value.keywords if k.arg}
        if called == "ArgumentParser":
            told = given.get("description") or docstring
            program = given.get("prog") or module.removesuffix(".__main__").split(".")[-1]
        elif called == "add_parser" and node.value.args:
            told = given.get("description") or given.get("help")
            top = module.removesuffix(".__main__").split(".")[0]
            program = f"{top}_{_constant(node.value.args[0])}"
        else:
            continue
        if isinstance(told, str) and isinstance(program, str) and len(node.targets) == 1:
            told = re.sub(r"^[\w. -]*?[-:] ", "", told.strip())
            told = told[:1].upper() + told[1:]
            program = re.sub(r"^python\d? -m ", "", program)
            found.setdefault(ast.unparse(node.targets[0]), (program, told))
    return found


def _constant(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return None


def _parameter(call: ast.Call) -> Parameter | None:
    """Return one argument of a command line, named as it is typed, without dashes."""
    spelled = [text for arg in call.args if isinstance(text := _constant(arg), str)]
    given = {k.arg: k.value for k in call.keywords if k.arg}
    constants = {name: _constant(value) for name, value in given.items()}
    if not spelled or constants.get("action") in ("version", "help"):
        return None
    longest = max(spelled, key=len)
    is_option = longest.startswith("-")
    name = longest.strip("-").replace("-", "_")
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or (is_option and len(name) < 2):
        return None
    told = constants.get("help")
    told = first_sentence(re.sub(r"\s*\(default.*?\)|%\(\w+\)\w|%%", "", told)) if told else ""
    told = told[:1].upper() + told[1:]
    required = bool(constants.get("required")) or (
        not is_option and constants.get("nargs") not in ("?", "*")
    )
    schema = _schema(given, constants)
    return None if schema is None else Parameter(name, schema, required, told)


def _schema(given: dict[str, ast.expr], constants: dict[str, Any]) -> dict[str, Any] | None:
    if constants.get("action") in ("store_true", "store_false"):
        return {"type": "boolean"}
    if "action" in given and constants["action"] not in ("store", "append"):
        return None
    choices = constants.get("choices")
    if "choices" in given:
        texts = [str(choice) for choice in choices] if choices else []
        return {"type": "string", "enum": texts} if len(texts) > 1 else None
    kind = _TYPES.get(ast.unparse(given["type"]).split(".")[-1]) if "type" in given else "string"
    if kind is None:
        return None
    many = constants.get("nargs") in ("+", "*") or constants.get("action") == "append"
    return {"type": "array", "items": {"type": kind}} if many else {"type": kind}
