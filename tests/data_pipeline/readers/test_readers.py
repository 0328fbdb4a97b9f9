"""Rows and files with every fault of the table."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.readers import base, compressed, jsonl, open_source
from data_pipeline.schema import Document, Tally
from loopcoder.config.build import SourceConfig
from loopcoder.errors import InputError

Reader = Callable[..., tuple[list[Document], Tally]]


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    """Read a file or `tmp_path` as a source of kind files and check the tally."""

    def run(path: Path = tmp_path, **fields: Any) -> tuple[list[Document], Tally]:
        source = open_source(SourceConfig(kind="files", path=str(path), **fields), 0)
        tally = Tally("read")
        documents = list(source.documents(tally))
        tally.check()
        assert tally.rows_out == len(documents)
        return documents, tally

    return run


def rows(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": t}).encode() + b"\n" for t in texts)


FAULTS = {
    b'{"text": "cut': "broken_json",
    b"nonsense": "broken_json",
    b"[" * 100_000: "broken_json",
    b'["text"]': "not_an_object",
    b"null": "not_an_object",
    b'{"other": "a"}': "missing_text",
    b'{"text": null}': "missing_text",
    b'{"text": 5}': "text_not_a_string",
    b'{"text": ["a"]}': "text_not_a_string",
    rb'{"text": "a\ud800b"}': "surrogate",
    b'{"text": " \\n"}': "empty",
}


def test_bad_rows_are_counted_by_reason(tmp_path: Path, read: Reader, rng: random.Random) -> None:
    content = [*FAULTS, *rows("one", "two", "three").splitlines()]
    rng.shuffle(content)
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(content))
    documents, tally = read()
    assert sorted(d.text for d in documents) == ["one", "three", "two"]
    assert tally.rows_in == len(content)
    for reason in set(FAULTS.values()):
        assert tally.drops[reason] == list(FAULTS.values()).count(reason)


def test_repaired_rows(tmp_path: Path, read: Reader) -> None:
    content = b'\xef\xbb\xbf{"text": "bom"}\r\n\r\n{"text": "a\xff"}\n'
    content += '{"text": "x\u2028y"}'.encode()
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl").write_bytes(b"")
    documents, tally = read(invalid_utf8="replace")
    assert [d.text for d in documents] == ["bom", "a\ufffd", "x\u2028y"]
    assert tally.notes == {
        "byte_order_mark": 1,
        "blank_line": 1,
        "invalid_utf8_replaced": 1,
    }
    assert tally.file_drops == {"empty_file": 1}


def test_too_large_rows_and_files(
    tmp_path: Path, read: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MAX_DOCUMENT_BYTES", 100)
    monkeypatch.setattr("data_pipeline.readers.contents.MAX_DOCUMENT_BYTES", 100)
    monkeypatch.setattr(jsonl, "_MAX_LINE_BYTES", 800)
    monkeypatch.setattr(compressed, "_CHUNK", 64)
    (tmp_path / "a.jsonl").write_bytes(rows("a", "b" * 101, "ä" * 60, "c" * 5000, "d"))
    (tmp_path / "b.py").write_bytes(b"#" * 101)
    documents, tally = read()
    assert [d.text for d in documents] == ["a", "d"]
    assert tally.drops == {"too_large": 4}


def pack(path: Path, data: bytes) -> bytes:
    if path.suffix == ".gz":
        return gzip.compress(data)
    return pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True).compress(data)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed(tmp_path: Path, read: Reader, rng: random.Random, suffix: str) -> None:
    texts = [f"{i} {rng.random()}" for i in range(20_000)]
    path = tmp_path / f"a.jsonl.{suffix}"
    half = len(texts) // 2
    # two members, as parallel compressors write them
    whole = pack(path, rows(*texts[:half])) + pack(path, rows(*texts[half:]))
    path.write_bytes(whole)
    documents, tally = read()
    assert [d.text for d in documents] == texts
    assert not tally.notes

    path.write_bytes(whole[: rng.randrange(int(len(whole) * 0.8), len(whole) - 20)])
    documents, tally = read()
    assert [d.text for d in documents] == texts[: len(documents)]
    assert len(documents) > half
    assert tally.file_drops == {"truncated_file": 1}

    bad = bytearray(whole)
    # the last 4 bytes of gzip are a length, those before them (zstd: the last) the checksum
    bad[-6 if suffix == "gz" else -2] ^= 0x55
    path.write_bytes(bad)
    (tmp_path / "b.jsonl").write_bytes(rows("good"))
    documents, tally = read()
    assert [d.text for d in documents] == ["good"]
    assert tally.file_drops == {f"corrupt_{suffix}": 1}


def test_many_bad_rows_fail(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "a.jsonl").write_bytes(rows(*["a"] * 900) + b"x\n" * 500)
    with pytest.raises(InputError, match="broken_json"):
        read()
    with pytest.raises(InputError, match="text_field"):
        read(text_field="content")


def test_many_bad_files_fail(tmp_path: Path, read: Reader) -> None:
    for i in range(6):
        (tmp_path / f"{i}.jsonl.gz").write_bytes(b"this is no gzip")
    with pytest.raises(InputError, match="corrupt_gz"):
        read()


def test_parquet(tmp_path: Path, read: Reader) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    text = pa.array([b"one", None, b"bad\xff", b" "], pa.binary()).view(pa.string())
    table = pa.table({"content": text, "lang": ["cpp", "Rust", None, "C"]})
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    documents, tally = read(text_field="content", language_field="lang", invalid_utf8="replace")
    assert [(d.text, d.domain, d.language) for d in documents] == [
        ("one", "code", "C++"),
        ("bad\ufffd", "text", "Text"),
    ]
    assert tally.drops == {"missing_text": 1, "empty": 1}
    assert tally.file_drops == {"no_column_content": 1, "corrupt_parquet": 1}


def test_folder_of_sources(tmp_path: Path, read: Reader) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.py").write_text("hidden")
    (tmp_path / "a.py").write_bytes(b"# caf\xe9\n")
    (tmp_path / "b.h").write_text("namespace n {}\n")
    (tmp_path / "c").write_text("#!/usr/bin/env -S python3 -u\nprint()\n")
    (tmp_path / "d.md").write_text("# Title\n")
    (tmp_path / "e.rst").write_text("Title\n=====\n")
    (tmp_path / "f.py").write_bytes(b"\0\1")
    (tmp_path / "g.bin").write_bytes(b"x")
    (tmp_path / "h.json").write_text('{"text": "row"}\n')
    (tmp_path / "i.json").write_text('{"a": 1}\n')
    (tmp_path / "j.py").write_text("")
    documents, tally = read(invalid_utf8="replace")
    assert [(Path(d.path).name, d.domain, d.language) for d in documents] == [
        ("a.py", "code", "Python"),
        ("b.h", "code", "C++"),
        ("c", "code", "Python"),
        ("d.md", "code", "Markdown"),
        ("e.rst", "text", "reStructuredText"),
        ("h.json", "text", "Text"),
    ]
    assert documents[0].text == "# caf\ufffd\n"
    assert tally.notes == {"invalid_utf8_replaced": 1}
    assert tally.drops == {"binary": 1, "empty": 1}
    assert tally.file_drops == {"unknown_type": 2, "hidden": 1}
    assert len({d.id for d in documents}) == len(documents)
    replaced = read(domain="code", invalid_utf8="replace")[0]
    assert {d.domain for d in replaced} == {"code"}


@pytest.mark.parametrize("name", ["a.py", "a.txt", "a.jsonl", "a.parquet"])
def test_invalid_utf8_is_an_error_unless_the_config_says_otherwise(
    tmp_path: Path, read: Reader, name: str
) -> None:
    if name.endswith("parquet"):
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        text = pa.array([b"good", b"bad\xe9"], pa.binary()).view(pa.string())
        pq.write_table(pa.table({"text": text}), tmp_path / name)
    elif name.endswith("jsonl"):
        (tmp_path / name).write_bytes(b'{"text": "good"}\n{"text": "bad\xe9"}\n')
    else:
        (tmp_path / name).write_bytes(b"bad\xe9\n")
    with pytest.raises(InputError) as error:
        read()
    assert name in error.value.problems[0].fact and "0xe9" in error.value.problems[0].fact
    assert "data.build.invalid_utf8=replace" in error.value.problems[0].fix
    documents, tally = read(invalid_utf8="drop")
    assert not any("bad" in d.text for d in documents)
    assert sum(tally.drops.values()) == 1
    assert "bad\ufffd" in read(invalid_utf8="replace")[0][-1].text


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a1.txt", "a2.txt", "[b].txt"):
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)

    def names(path: str | list[str]) -> list[str]:
        source = open_source(SourceConfig(kind="files", path=path), 0)
        return [d.text for d in source.documents(Tally("read"))]

    assert names("a*.txt") == ["a1.txt", "a2.txt"]
    assert names(["a2.txt", "a*.txt", "[b].txt"]) == ["[b].txt", "a1.txt", "a2.txt"]
    with pytest.raises(InputError, match=r"'no.*' does not exist") as caught:
        names(["no*", "neither", "a1.txt"])
    assert len(caught.value.problems) == 2
    with pytest.raises(InputError, match="no path"):
        open_source(SourceConfig(kind="files"), 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="of 0 files under empty none is usable"):
        names("empty")


@pytest.mark.parametrize("name", ["a.py", "a.jsonl", "a.jsonl.gz"])
def test_file_that_vanishes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    source = open_source(SourceConfig(kind="files", path=str(tmp_path)), 0)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"cannot read .*{name}"):
        list(source.documents(Tally("read")))


def test_hf_saved_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"text": ["one", "", "two"], "lang": [None, "C", "go"]})
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "d"))

    def read(**fields: Any) -> list[tuple[str, str]]:
        source = open_source(SourceConfig(kind="hf", path=str(tmp_path / "d"), **fields), 0)
        tally = Tally("read")
        documents = list(source.documents(tally))
        tally.check()
        return [(d.text, d.language) for d in documents]

    assert read(language_field="lang", split="test") == [("one", "Text"), ("two", "Go")]
    with pytest.raises(InputError, match="text_field=body"):
        read(text_field="body")
    with pytest.raises(InputError, match="'nope'"):
        read(split="nope")


def test_hf_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")

    def no_network(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    with pytest.raises(InputError, match="ConnectionError: Couldn't reach the Hub"):
        list(open_source(SourceConfig(kind="hf", path="a/b"), 0).documents(Tally("read")))
    with pytest.raises(InputError, match="does not exist"):
        open_source(SourceConfig(kind="hf", path=str(tmp_path / "none")), 0)
    with pytest.raises(InputError, match="path null"):
        open_source(SourceConfig(kind="hf"), 0)
