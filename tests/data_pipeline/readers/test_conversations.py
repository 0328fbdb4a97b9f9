"""Rows of conversations in every format of table, and rows that are none."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any, Literal

import pytest

from data_pipeline.readers import open_source
from data_pipeline.readers.conversations import conversation_of, said
from data_pipeline.readers.hf import HFSource, is_data_set
from data_pipeline.readers.verdict import judge
from data_pipeline.schema import Document, Tally
from loopcoder.chat.parsing import parse
from loopcoder.config.build import SourceConfig
from loopcoder.errors import InputError
from tests.data_pipeline.chat.conftest import rows, write


def read(path: Path, **fields: Any) -> tuple[list[Document], Tally]:
    tally = Tally("ingest")
    source = open_source(SourceConfig(kind="chat", path=str(path), **fields), 0)
    return list(source.documents(tally)), tally


@pytest.mark.parametrize("form", ["jsonl", "gz", "list", "parquet", "saved"])
def test_every_format_gives_the_same_conversations(
    tmp_path: Path, rng: random.Random, form: str
) -> None:
    given = rows(rng, 40)
    lines = "".join(json.dumps(row) + "\n" for row in given)
    path = tmp_path / "chats.jsonl"
    if form == "jsonl":
        path.write_text(lines)
    elif form == "gz":
        path = tmp_path / "chats.jsonl.gz"
        path.write_bytes(gzip.compress(lines.encode()))
    elif form == "list":
        path = tmp_path / "chats.json"
        path.write_text(json.dumps(given))
    else:
        path = _table(tmp_path, given, form)
    documents, tally = read(path)
    tally.check()
    assert not tally.drops
    assert [conversation_of(document) for document in documents] == [parse(row) for row in given]
    assert [document.meta["licence"] for document in documents] == [r["licence"] for r in given]
    assert [document.meta["origin"] for document in documents] == [r["source"] for r in given]


def _table(folder: Path, given: list[dict[str, Any]], form: str) -> Path:
    """Write a typed table: what a function takes and its calls as JSON, since objects of a column
    have the same fields there."""
    typed = []
    for row in given:
        messages = [
            {"content": None, "reasoning_content": None, "tool_call_id": None, "name": None}
            | {"train": None, "tool_calls": None}
            | message
            | {"tool_calls": [_as_text(call) for call in message.get("tool_calls", [])] or None}
            for message in row["messages"]
        ]
        typed.append(row | {"messages": messages, "tools": json.dumps(row.get("tools", []))})
    if form == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(typed), folder / "chats.parquet")
        return folder / "chats.parquet"
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(typed).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def _as_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"] | {"arguments": json.dumps(call["function"]["arguments"])}
    return {"id": None} | call | {"function": function}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_rows_of_questions_and_answers_are_read_whole(tmp_path: Path, form: str) -> None:
    row = {
        "instruction": "a",
        "input": "b",
        "context": "g",
        "output": "c",
        "history": [["d", "e"]],
        "system_prompt": "f",
    }
    path = write(tmp_path / "a.jsonl", [row])
    if form == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        path = tmp_path / "a.parquet"
        pq.write_table(pa.Table.from_pylist([row]), path)
    (document,), _ = read(path)
    said = [(m.role, m.content) for m in conversation_of(document).messages]
    before = [("system", "f"), ("user", "d"), ("assistant", "e")]
    assert said == [*before, ("user", "a\n\nb\n\ng"), ("assistant", "c")]


def test_a_table_with_nothing_but_licences_and_sources_is_none(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"source": "a", "licence": "MIT"}]), path)
    with pytest.raises(InputError, match=r"messages"):
        read(path)


def test_columns_by_their_names(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write(tmp_path / "a.jsonl", [{"chat": turns, "terms": "MIT", "messages": "x"}])
    (document,), _ = read(path, messages_field="chat", licence_field="terms")
    assert document.meta["licence"] == "MIT"
    assert conversation_of(document) == parse({"messages": turns})


@pytest.mark.parametrize("markup", ["read", "keep"])
def test_calls_that_are_spelled_are_read_or_kept(
    tmp_path: Path, markup: Literal["read", "keep"]
) -> None:
    said = [
        '<tool_call>{"name": "f", "arguments": {}}</tool_call>',
        "<tool_call>{}</tool_call>",
        "b",
    ]
    rows = [{"prompt": "a", "completion": one, "tools": [{"name": "f"}]} for one in said]
    documents, tally = read(write(tmp_path / "a.jsonl", rows), markup=markup)
    found = [conversation_of(document).messages[1] for document in documents]
    if markup == "keep":
        assert [one.content for one in found] == said and not tally.drops
        return
    assert [(one.content, [c.name for c in one.tool_calls]) for one in found] == [
        ("", ["f"]),
        ("b", []),
    ]
    assert dict(tally.drops) == {"unreadable_call": 1}


def test_faults_alone_are_refused_with_the_column_that_may_be_meant(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"talk": [{"role": "user", "content": "a"}]}] * 3)
    with pytest.raises(InputError, match=r"data\.build\.sources\.0\.messages_field=talk"):
        read(path)


ASKED, SAID = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        ({"messages": [ASKED, {**SAID, "content": "<tool_call>{}"}]}, "sources.0.markup=keep"),
        ({"messages": [ASKED, SAID], "tools": "look"}, "sources.0.tools_field=COLUMN"),
        ({"messages": [ASKED, {**SAID, "weight": 0.5}]}, "weight 1 or 0"),
        ({"id": ["x"], "messages": "a [b]"}, "sources.0.messages_field=COLUMN"),
        ({"id": 7, "terms": "MIT", "talk": [ASKED, SAID]}, "sources.0.messages_field=talk"),
        ({"tags": ["a"], "talk": [ASKED, SAID]}, "sources.0.messages_field=talk"),
        ({"tools": "[]", "talk": json.dumps([ASKED, SAID])}, "sources.0.messages_field=talk"),
        (
            {"prompt": [ASKED], "rejected": [ASKED, SAID], "chosen": [ASKED, SAID]},
            "sources.0.messages_field=chosen",
        ),
        ({"query": "a", "answers": '[{"name": "f"}]'}, "sources.0.messages_field=COLUMN"),
    ],
)
def test_the_fix_is_that_of_the_commonest_fault(
    tmp_path: Path, row: dict[str, Any], fix: str
) -> None:
    rare = {"messages": [{"role": "pirate", "content": "a"}]}
    with pytest.raises(InputError) as refused:
        read(write(tmp_path / "a.jsonl", [rare, row, row]))
    (problem,) = refused.value.problems
    assert fix in problem.fix
    assert "roles" not in problem.fix


@pytest.mark.parametrize("form", ["jsonl", "parquet", "saved"])
def test_no_column_is_offered_where_none_has_messages(tmp_path: Path, form: str) -> None:
    path = write_table(tmp_path, [{"id": "a", "tags": ["b"], "said": [["c", "d"]]}], form)
    with pytest.raises(InputError, match=r"holds? a list of messages") as refused:
        read(path)
    assert "messages_field=COLUMN" in refused.value.problems[0].fix


def write_table(folder: Path, rows: list[dict[str, Any]], form: str) -> Path:
    path = folder / f"a.{form}"
    if form == "jsonl":
        return write(path, rows)
    if form == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        pytest.importorskip("datasets").Dataset.from_list(rows).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_a_table_with_messages_in_another_column(tmp_path: Path, form: str) -> None:
    path = write_table(tmp_path, [{"id": "a", "tags": ["b"], "talk": [ASKED, SAID]}], form)
    with pytest.raises(InputError, match=r"sources\.0\.messages_field=talk"):
        read(path)


@pytest.mark.parametrize("share", [0.15, 0.25])
def test_a_fifth_of_bad_rows_stops_a_build(tmp_path: Path, share: float) -> None:
    good = {"prompt": "a", "completion": "b"}
    bad = [
        {"messages": [{"role": "pirate", "content": "a"}]},
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "assistant", "content": "a"}]},
    ]
    count = int(1200 * share)
    given = [*(bad[i % len(bad)] for i in range(count)), *[good] * (1200 - count)]
    path = write(tmp_path / "a.jsonl", given)
    if share > 0.2:
        with pytest.raises(InputError, match="300 of the 1,200 rows"):
            read(path)
        return
    documents, tally = read(path)
    assert len(documents) == 1200 - count
    assert tally.drops.keys() == {"unknown_role", "no_assistant_turn", "roles_out_of_order"}
    judge(tally, "0-chat")


def test_a_folder_of_other_files_has_no_conversations(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("x = 1\n")
    with pytest.raises(InputError, match=r"none is usable") as refused:
        read(tmp_path)
    assert ".jsonl" in str(refused.value)
    assert "source code" not in str(refused.value)


def test_what_is_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    assert is_data_set(str(tmp_path / "saved"))
    assert is_data_set("owner/name")
    assert not any(map(is_data_set, ("chats.jsonl", "data/chats.jsonl", "chats", str(tmp_path))))
    assert isinstance(open_source(SourceConfig(kind="chat", path="owner/name"), 0), HFSource)


def test_copies_are_told_by_what_is_said(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add 1 and 2"},
        {"role": "assistant", "content": "3"},
    ]
    tools = [{"name": "add", "parameters": {"type": "object", "description": "of two numbers"}}]
    path = write(tmp_path / "a.jsonl", [{"messages": turns, "tools": tools}])
    (document,), _ = read(path)
    assert said(document) == "Add 1 and 2\n3"
