"""Tools from signatures and command lines, docstrings as questions, calls that were asked for."""

from __future__ import annotations

import ast
import gzip
import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.tools.chat_set import apis, doctests, programs, signatures
from data_pipeline.tools.chat_set.computed import COMPUTED
from data_pipeline.tools.chat_set.dialogues import Toolbox, conversations
from data_pipeline.tools.chat_set.signatures import schema_of
from data_pipeline.tools.chat_set.summaries import act, summary
from data_pipeline.tools.chat_set.tool import Tool
from tests.data_pipeline.tools.snippets import MODULE, PROGRAM

TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list}


def tools() -> list[Tool]:
    found = [*signatures.tools_of_module(ast.parse(MODULE), "pack.files", "pack 1", "MIT")]
    return [*found, *programs.tools_of_module(ast.parse(PROGRAM), "pack.cli", "pack 1", "MIT")]


def test_a_signature_becomes_a_schema() -> None:
    by_name = {tool.name: tool.plain()["function"] for tool in tools()}
    assert by_name.keys() == {"halves", "copy_file", "packer"}  # not what takes a function
    assert by_name["halves"] == {
        "name": "halves",
        "description": "Return half of a number, rounded.",
        "parameters": {
            "type": "object",
            "properties": {
                "number": {"type": "integer", "description": "The number to divide."},
                "places": {"type": "integer", "description": "How many digits are kept."},
            },
            "required": ["number"],
        },
    }
    copied = by_name["copy_file"]["parameters"]
    assert copied["properties"]["mode"] == {"type": "string", "enum": ["fast", "safe"]}
    assert copied["properties"]["target"] == {"type": "string"}
    assert copied["required"] == ["path"]


def test_a_command_line_becomes_a_schema() -> None:
    (packer,) = (tool for tool in tools() if tool.kind == "program")
    assert packer.act == "pack a folder into an archive"
    assert packer.plain()["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "folder": {"type": "string", "description": "Folder to pack."},
            "level": {"type": "integer", "description": "Compression level."},
            "format": {"type": "string", "enum": ["tar", "zip"]},
            "exclude_from": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["folder"],
    }


@pytest.mark.parametrize(
    ("written", "schema"),
    [
        ("int, optional", {"type": "integer"}),
        ("Optional[str]", {"type": "string"}),
        ("str | os.PathLike[str] | None", {"type": "string"}),
        ("{'a', 'b'}, default 'a'", {"type": "string", "enum": ["a", "b"]}),
        ("list[int]", {"type": "array", "items": {"type": "integer"}}),
        ("array_like", {"type": "array", "items": {"type": "number"}}),
        ("Callable[[int], str]", None),
        ("int | Graph", None),
    ],
)
def test_types(written: str, schema: dict[str, Any] | None) -> None:
    assert schema_of(written) == schema


def test_summaries() -> None:
    assert act("Computes the sum of ``x``.\n\nMore.") == "compute the sum of `x`"
    assert act("A class of things.") == ""
    assert summary("Return what is given by:\n\n    x") == ""


def test_a_service_becomes_tools(tmp_path: Path) -> None:
    member = {"shape": "Name", "documentation": "<p>The name.</p><p>More.</p>"}
    shapes = {
        "In": {"type": "structure", "required": ["Name"], "members": {
            "Name": member, "NextToken": {"shape": "Name"}, "Size": {"shape": "Size"}}},
        "Map": {"type": "structure", "required": ["Tags"], "members": {"Tags": {"shape": "In"}}},
        "Name": {"type": "string"},
        "Size": {"type": "integer", "min": 1, "max": 9},
    }  # fmt: skip
    told = "<p>Creates a <code>queue</code> of messages.</p>"
    operations = {
        "CreateQueue": {"input": {"shape": "In"}, "documentation": told},
        "TagQueue": {"input": {"shape": "Map"}, "documentation": told},
    }
    service = {"metadata": {"serviceId": "Q"}, "shapes": shapes, "operations": operations}
    file = tmp_path / apis.DESCRIPTION
    file.write_bytes(gzip.compress(json.dumps(service).encode()))
    (tool,) = apis.tools_of_service(file, "botocore 1", "Apache-2.0")
    assert tool.act == "create a `queue` of messages"
    assert tool.plain()["function"]["parameters"]["properties"] == {
        "Name": {"type": "string", "description": "The name."},
        "Size": {"type": "integer", "minimum": 1, "maximum": 9},
    }


def test_docstrings_ask_for_output_use_and_code() -> None:
    rng = random.Random(1)
    module = MODULE.replace(">>> halves(3)", ">>> from pack import halves\n    >>> halves(3)")
    rows = doctests.rows_of_module(ast.parse(module), "pack.files", "pack 1", "MIT", rng)
    by_kind = {row.kind: row for row in rows}
    assert by_kind["python_prints"].messages[1]["content"] == "```\n1.5\n```"
    assert "Line 1" in by_kind["python_prints"].messages[1]["reasoning_content"]
    assert "Return half of a number" in by_kind["python_usage"].messages[1]["content"]
    written = by_kind["python_writes"]
    assert "halves(number: int, places: int=2)" in written.messages[0]["content"]
    code = written.messages[1]["content"].removeprefix("```python\n").removesuffix("\n```")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["halves"](3) == 1.5
    assert "islice" not in code


def validate(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    assert set(schema.get("required", ())) <= arguments.keys() <= schema["properties"].keys()
    for name, value in arguments.items():
        wanted = schema["properties"][name]
        assert isinstance(value, TYPES[wanted["type"]]), (name, value, wanted)
        assert value in wanted.get("enum", [value])
        if wanted["type"] == "integer":
            assert wanted.get("minimum", value) <= value <= wanted.get("maximum", value)


def is_said(value: Any, text: str) -> bool:
    if isinstance(value, list):
        return all(is_said(one, text) for one in value)
    return isinstance(value, bool) or str(value) in text


def test_every_call_was_asked_for_and_fits_its_tool() -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rows = [*conversations(Toolbox(tools()), 60, seed)]
    assert len({row.kind for row in rows}) == 7
    for row in rows:
        schemas = {t["function"]["name"]: t["function"]["parameters"] for t in row.tools}
        assert len(schemas) == len(row.tools)
        heard = ""
        for message in row.messages:
            for call in message.get("tool_calls", ()):
                arguments = json.loads(call["function"]["arguments"])
                validate(arguments, schemas[call["function"]["name"]])
                unsaid = [value for value in arguments.values() if not is_said(value, heard)]
                assert not unsaid, (unsaid, heard)
            if message["role"] in ("user", "tool"):
                heard += message["content"]


def test_results_of_our_own_tools_are_true() -> None:
    rng = random.Random()
    by_name: dict[str, Any] = {c.tool.name: c for c in COMPUTED}
    for _ in range(20):
        a, b, n = rng.randint(2, 99), rng.randint(2, 99), rng.randint(2, 3000)
        answers: Sequence[tuple[str, dict[str, Any], Any]] = [
            ("add", {"a": a, "b": b}, a + b),
            ("to_base", {"number": n, "base": 8}, f"{n:o}"),
            ("is_prime", {"n": n}, all(n % k for k in range(2, n))),
            ("days_between", {"start": "2024-02-01", "end": "2024-03-01"}, 29),
            ("to_roman", {"n": 1994}, "MCMXCIV"),
            ("hex_to_rgb", {"color": "#ff8000"}, [255, 128, 0]),
        ]
        for name, arguments, result in answers:
            ask = by_name[name].ask(rng, **arguments)
            assert json.loads(ask.result)["result"] == result
    assert re.search(r"is not a prime", by_name["is_prime"].ask(rng, n=9).answer)
