"""Tools from the signatures of typed Python functions, with the types of numpy's docstrings.

Sources are parsed, never imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from data_pipeline.tools.chat_set.summaries import act, summary
from data_pipeline.tools.chat_set.tool import Parameter, Tool, arranged, first_sentence

_SIMPLE = {
    "str": "string", "string": "string", "int": "integer", "integer": "integer",
    "float": "number", "number": "number", "scalar": "number", "bool": "boolean",
    "boolean": "boolean", "Path": "string", "PathLike": "string", "StrPath": "string",
    "path-like": "string", "StrOrBytesPath": "string", "SupportsInt": "integer",
    "positive int": "integer", "non-negative int": "integer",
}  # fmt: skip
_LISTS = re.compile(r"(?:list|List|Sequence|Iterable|Collection|tuple|set)\[(\w+)(?:, ?\.\.\.)?\]")
_API = re.compile(r"Api$|Client$|FileSystem$")


def tools_of_module(tree: ast.Module, module: str, source: str, licence: str) -> Iterator[Tool]:
    """Yield the public functions, and the methods of classes that are interfaces, as tools."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield from _tool(node, module, f"{source}:{module}", licence)
        elif isinstance(node, ast.ClassDef) and _API.search(node.name):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield from _tool(inner, module, f"{source}:{module}.{node.name}", licence)


def _tool(node: ast.FunctionDef, module: str, source: str, licence: str) -> Iterator[Tool]:
    docstring = ast.get_docstring(node) or ""
    task, told = act(docstring), summary(docstring)
    if node.name.startswith("_") or not task or node.name in ("main", "run", "test"):
        return
    parameters = parameters_of(node, docstring)
    if parameters:
        yield Tool(node.name, told, task, parameters, f"{source}.{node.name}", licence, "function")


def parameters_of(node: ast.FunctionDef, docstring: str) -> list[Parameter]:
    """Return the parameters that JSON can give, or [] if one that is required is none of them."""
    if node.args.vararg or node.args.posonlyargs:
        return []
    taken = node.args.args
    defaults: list[ast.expr | None] = [None] * (len(taken) - len(node.args.defaults))
    pairs = list(zip(taken, [*defaults, *node.args.defaults], strict=True))
    pairs += list(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
    documented = _documented(docstring)
    found = []
    for argument, default in pairs:
        if argument.arg in ("self", "cls"):
            continue
        typed, told = documented.get(argument.arg, ("", ""))
        schema = schema_of(ast.unparse(argument.annotation)) if argument.annotation else None
        schema = schema or schema_of(typed) or _of_default(default)
        if schema is None or argument.arg.startswith("_"):
            if default is None:
                return []
            continue
        found.append(Parameter(argument.arg, schema, default is None, first_sentence(told)))
    return arranged(found)


def _of_default(default: ast.expr | None) -> dict[str, Any] | None:
    if not isinstance(default, ast.Constant) or default.value is None:
        return None
    return schema_of(type(default.value).__name__)


def schema_of(written: str) -> dict[str, Any] | None:
    """Return the JSON schema of a type as Python or numpy's docstrings write it, or None."""
    text = re.sub(
        r",? *optional\b|,? *default[= :].*$|,? *keyword-only", "", written.strip("`'\" ")
    )
    text = re.sub(r"\bOptional\[(.+)\]$", r"\1", text).strip(" ,")
    text = re.sub(r"(?:^| or |\| ?)None\b|\bNone(?: \||,)", "", text).strip(" ,|")
    text = re.sub(r"\b(?:os|pathlib|typing|t|builtins)\.", "", text)
    if choices := re.fullmatch(r"(?:Literal\[|\{)(.+)[\]}]", text):
        return _choices(choices[1])
    kinds = [
        part.strip() for part in re.split(r"\||\bor\b", re.sub(r"PathLike\[.*?\]", "Path", text))
    ]
    for kind in kinds:
        if kind in _SIMPLE and all(k in _SIMPLE for k in kinds):
            return {"type": _SIMPLE[kind]}
        inner = _LISTS.fullmatch(kind) or re.fullmatch(r"(?:list|sequence|tuple) of (\w+?)s?", kind)
        if inner and inner[1] in _SIMPLE and len(kinds) == 1:
            return {"type": "array", "items": {"type": _SIMPLE[inner[1]]}}
        if re.match(r"(?:1-?D )?(?:array[_ -]?like|ndarray)$", kind):
            return {"type": "array", "items": {"type": "number"}}
    return None


def _choices(text: str) -> dict[str, Any] | None:
    try:
        values = ast.literal_eval(f"[{text}]")
    except (ValueError, SyntaxError):
        return None
    texts = [value for value in values if isinstance(value, str) and value]
    return {"type": "string", "enum": texts} if len(texts) == len(values) > 1 else None


def _documented(docstring: str) -> dict[str, tuple[str, str]]:
    """Return by name the type and the description that a docstring gives to a parameter.

    Read are the section Parameters of numpy's style, Args of Google's and :param of Sphinx'.
    """
    found = {}
    numpy = re.search(r"^Parameters\n-{3,}\n(.*?)(?=^\w[\w ]*\n-{3,}|\Z)", docstring, re.M | re.S)
    if numpy:
        entry = re.compile(r"^(\w+(?:, \w+)*) ?: ?(.*)\n((?:[ \t]+.*\n?|\n)*)", re.M)
        for names, typed, told in entry.findall(numpy[1]):
            found.update(dict.fromkeys(names.split(", "), (typed, told)))
    google = re.search(r"^(?:Args|Arguments):\n(.*?)(?=^\S|\Z)", docstring, re.M | re.S)
    if google:
        entry = re.compile(r"^ +(\w+) ?(?:\((.*?)\))?: ?\n?((?:.*\n?)(?: {8,}.*\n?)*)", re.M)
        found.update({name: (typed, told) for name, typed, told in entry.findall(google[1])})
    for name, told in re.findall(r":param (?:\w+ )?(\w+): ?(.*(?:\n[ \t]+.*)*)", docstring):
        found.setdefault(name, ("", told))
    return found
