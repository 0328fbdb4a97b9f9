"""Tools from the descriptions of web services that botocore carries, shapes of JSON."""

from __future__ import annotations

import gzip
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.tools.chat_set.summaries import act, summary
from data_pipeline.tools.chat_set.tool import Parameter, Tool, arranged, first_sentence

DESCRIPTION = "service-2.json.gz"
"""Name of the file that describes a service."""
_SIMPLE = {
    "string": "string", "integer": "integer", "long": "integer", "boolean": "boolean",
    "float": "number", "double": "number",
}  # fmt: skip


def tools_of_service(description: Path, source: str, licence: str) -> Iterator[Tool]:
    """Yield the operations of a service, a file DESCRIPTION, as tools."""
    with gzip.open(description) as packed:
        service = json.load(packed)
    shapes = service["shapes"]
    for name, operation in service["operations"].items():
        told = _text(operation.get("documentation", ""))
        task = act(told)
        if not task or operation.get("deprecated") or "input" not in operation:
            continue
        parameters = _parameters(shapes, operation["input"]["shape"])
        if parameters:
            where = f"{source}:{service['metadata']['serviceId']}.{name}"
            yield Tool(name, summary(told), task, parameters, where, licence, "api")


def _parameters(shapes: dict[str, Any], structure: str) -> list[Parameter]:
    """Return the members that are plain values or lists of these; [] if one that is needed is
    not."""
    shape = shapes[structure]
    required, found = shape.get("required", []), []
    for name, member in shape.get("members", {}).items():
        schema = _schema(shapes, member["shape"])
        if schema is not None and not member.get("deprecated"):
            told = first_sentence(_text(member.get("documentation", "")))
            found.append(Parameter(name, schema, name in required, told))
        elif name in required:
            return []
    return arranged(found)


def _schema(shapes: dict[str, Any], name: str) -> dict[str, Any] | None:
    shape = shapes[name]
    if shape["type"] == "list":
        items = shapes[shape["member"]["shape"]]
        inner = _SIMPLE.get(items["type"])
        return (
            {"type": "array", "items": {"type": inner}} if inner and "enum" not in items else None
        )
    kind = _SIMPLE.get(shape["type"])
    if kind is None:
        return None
    if "enum" in shape:
        return {"type": kind, "enum": shape["enum"]} if 1 < len(shape["enum"]) <= 12 else None
    bounds = {}
    if kind == "integer":
        named = (("minimum", "min"), ("maximum", "max"))
        bounds = {to: shape[of] for to, of in named if of in shape}
    return {"type": kind, **bounds}


def _text(documentation: str) -> str:
    """Return the first paragraph of a documentation in HTML as text."""
    first = re.search(r"<p>(.*?)</p>", documentation, re.S)
    text = re.sub(r"</?(code|i|b)>", "`" if "<code>" in (first[1] if first else "") else "",
                  first[1] if first else documentation)  # fmt: skip
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).replace("` ", "` ").split())
