"""docs/configuration.md is what the schema says now, and complete."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from loopcoder.backends import Backends
from loopcoder.config.check import check
from loopcoder.config.compose import compose
from loopcoder.config.fields import FieldAt, leaves
from loopcoder.config.resolve import resolve
from loopcoder.config.schema import Config
from loopcoder.errors import InputError

DOCS = Path(__file__).resolve().parents[2] / "docs"
GENERATOR = runpy.run_path(str(DOCS / "generate_configuration.py"))
PAGE = (DOCS / "configuration.md").read_text(encoding="utf-8")


def test_the_page_is_up_to_date():
    assert GENERATOR["render"]() == PAGE, "run: python docs/generate_configuration.py"


def test_every_key_has_a_row_with_its_docstring():
    rows = dict(re.findall(r"^\| `([^`]+)` \|.*\| (.*) \|$", PAGE, re.M))
    paths: list[list[str | int]] = [[*key.split(".")] for key, _ in leaves(FieldAt(Config))]
    for entries in (["data", "build", "sources", 0], ["data", "stages", 0]):
        entry = FieldAt(Config).at(entries)
        assert entry is not None and entry.fields
        paths += [[*entries, inner] for inner in entry.fields]
    for path in paths:
        at = FieldAt(Config).at(path)
        key = ".".join("N" if part == 0 else str(part) for part in path)
        assert at is not None and key in rows
        assert rows[key].replace("&lt;", "<") == " ".join(at.doc.split())


def test_what_one_changes_first_comes_first_and_filters_last():
    headings = re.findall(r"^## (.*)$", PAGE, re.M)
    assert headings[:2] == ["To begin with", "The run"]
    assert headings[-2:] == ["data.build.filters", "Sections of commands"]
    first = PAGE.partition("## The run")[0]
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", first, re.M)
    assert len(rows) == 15
    compose([f"{key}={value}" for key, value in rows])  # which are values of these fields


def test_no_default_is_a_wall():
    rows = re.findall(r"^\| `([^`]+)` \| [^|]* \| ([^|]*) \| [^|]* \| ", PAGE, re.M)
    defaults = dict(rows)
    sections = ("data.build", "data.build.filters", "data.build.decontaminate", "optim.schedule")
    assert {defaults[key] for key in sections} <= {"see below", "from conf/"}
    assert {key for key, default in rows if len(default) > 150} == {
        "data.build.filters.allowed_licences"
    }


@pytest.mark.parametrize("override", GENERATOR["NOT_BUILT"])
def test_what_the_page_calls_not_built_is_refused(override: str):
    """Delete the line of NOT_BUILT when it is built."""
    machine = Backends(2, "NVIDIA H100", (9, 0), {"transformer_engine": "2.20"})
    with pytest.raises(InputError) as error:
        check(resolve(compose([override]), machine), 2, machine)
    assert override in [p.fact for p in error.value.problems]


def test_the_sections_of_commands_have_their_fields():
    page = PAGE.partition("## Sections of commands")[2]
    assert "| `generate.max_tokens` | int ≥ 1 | `256` | Most tokens of an answer. |" in page
    for name, schema in GENERATOR["VERBS"].items():
        rows = re.findall(rf"^\| `{name}\.([^`]+)` \|", page, re.M)
        assert rows == list(FieldAt(schema).fields)
