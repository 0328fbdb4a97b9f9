"""A whole set: balanced, the same again, sound rows with their licences."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.readers.fetch import Package
from data_pipeline.tools import chat_from_docs
from data_pipeline.tools.chat_from_docs import PARTS, main
from data_pipeline.tools.chat_set.rows import joined_licences
from loopcoder.chat.parsing import parse
from loopcoder.errors import InputError
from tests.data_pipeline.tools.snippets import GIT, MAN, MODULE, NODE, POD, PROGRAM, RST

PAGES = {
    "perl-doc": ("usr/share/perl/5/pod/perlfaq4.pod", POD),
    "python3.11-doc": ("usr/share/doc/python3.11/html/_sources/faq/sort.rst.txt", RST),
    "manpages": ("usr/share/man/man3/frob.3", MAN),
    "manpages-dev": ("usr/share/man/man3/frob.3", MAN.replace("frob", "frab")),
    "git-doc": ("usr/share/doc/git-doc/git-frob.txt", GIT),
    "nodejs-doc": ("usr/share/doc/nodejs/api/frob.md", NODE),
}
MAX_PER_KIND = 12


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a Python package on the path and the Debian packages in a cache."""

    def fetched(names: Sequence[str], folder: Path, report: Any) -> list[Package]:
        found = []
        for name in names:
            page, text = PAGES[name]
            file = folder / name / page
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            found.append(Package("debian", name, "1:1", "", [], name))
        return found

    monkeypatch.setattr(chat_from_docs, "fetch_debian", fetched)
    files = {
        "knobs/files.py": MODULE.replace(
            ">>> halves(3)", ">>> from knobs import halves\n    >>> halves(3)"
        ),
        "knobs/cli.py": PROGRAM,
        "knobs/tests/test_cli.py": PROGRAM,
        "knobs/broken.py": "def (",
        "knobs-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: knobs\nVersion: 1\n"
        "License-Expression: MIT OR 0BSD\n",
    }
    record = "".join(f"{name},,\n" for name in files)
    for name, text in (files | {"knobs-1.dist-info/RECORD": record}).items():
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path


def made(folder: Path, *options: str) -> list[dict[str, Any]]:
    out = folder / "sets" / "out.jsonl"
    told: list[str] = []
    limit = f"--max-per-kind={MAX_PER_KIND}"
    arguments = [str(out), f"--cache={folder}", "--packages", "knobs", limit, *options]
    assert main(arguments, told.append) == 0
    assert "licences" in told[-2]
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_the_set_is_sound_balanced_and_the_same_again(sources: Path) -> None:
    rows = made(sources, "--reasoning")
    kinds = Counter(row["kind"] for row in rows)
    assert max(kinds.values()) == MAX_PER_KIND
    assert {"perl_faq", "python_faq", "man_example", "git_option", "node_usage", "python_writes",
            "tool_call", "tool_chain", "tool_words", "two_questions"} <= kinds.keys()  # fmt: skip
    said = {json.dumps([m.get("content") for m in row["messages"]] + [
        m.get("tool_calls") for m in row["messages"]]) for row in rows}  # fmt: skip
    assert len(said) == len(rows)
    for row in rows:
        conversation = parse(row)
        thinks = any(message.reasoning for message in conversation.messages)
        assert thinks == ("reasoning by rule" in row["made"])
        assert row["source"] and row["licence"]
    assert {row["licence"] for row in rows if row["kind"] == "python_writes"} == {"MIT OR 0BSD"}
    assert made(sources, "--reasoning") == rows
    assert made(sources, "--reasoning", "--seed=7") != rows
    plain = made(sources)
    assert not any("reasoning_content" in m for row in plain for m in row["messages"])
    assert [row["source"] for row in plain] == [row["source"] for row in rows]


def test_only_some_parts(sources: Path) -> None:
    rows = made(sources, "--only", "man", "perl")
    assert {row["kind"].split("_")[0] for row in rows} == {"man", "perl", "two"}
    assert "tools" in PARTS


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        (["--packages", "no-such-package"], "pip install no-such-package"),
        (["--only", "cobol"], "--help"),
        (["--seed"], "--help"),
    ],
)
def test_mistakes(sources: Path, options: list[str], fix: str) -> None:
    with pytest.raises(InputError, match=fix):
        main([str(sources / "x.jsonl"), f"--cache={sources}", *options])
    assert not (sources / "x.jsonl").exists()


def test_a_package_whose_licence_is_not_known_is_refused(sources: Path) -> None:
    file = sources / "site/knobs-1.dist-info/METADATA"
    file.write_text(file.read_text().replace("License-Expression: MIT OR 0BSD", "License: Ours"))
    with pytest.raises(InputError, match="Ours"):
        made(sources, "--only", "docstrings")


def test_licences_of_several_texts() -> None:
    assert joined_licences(["MIT", "MIT"]) == "MIT"
    assert joined_licences(["MIT OR 0BSD"]) == "MIT OR 0BSD"
    assert joined_licences(["MIT AND Zlib", "A OR B", "MIT"]) == "(A OR B) AND MIT AND Zlib"
    again = joined_licences(["(A OR B) AND MIT", "A OR B"])
    assert again == "(A OR B) AND MIT"
