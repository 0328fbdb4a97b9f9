"""Packed files, tables, lists, notebooks and nested fields: every sort gives its documents, and a
damaged file costs only itself."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.readers.columns import column_of, offered, text_columns, value_at
from data_pipeline.readers.files import FilesSource
from data_pipeline.readers.notebooks import notebook_script
from data_pipeline.schema import Document, Tally
from loopcoder.config.build import SourceConfig
from loopcoder.errors import InputError

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def read(path: Path, **fields: Any) -> tuple[list[Document], Tally]:
    tally = Tally("ingest")
    config = SourceConfig(**({"kind": "files", "path": str(path)} | fields))
    documents = list(FilesSource("0-files", config).documents(tally))
    tally.check()
    return documents, tally


@pytest.mark.parametrize("packer", PACK)
@pytest.mark.parametrize(
    ("name", "language"), [("a.txt", "Text"), ("b.py", "Python"), ("c.tar.md", "Markdown")]
)
def test_packed_files(tmp_path: Path, packer: str, name: str, language: str) -> None:
    text = "x = 1\n" * 50_000
    data = PACK[packer](text.encode())
    (tmp_path / (name + packer)).write_bytes(data)
    (tmp_path / ("two" + name + packer)).write_bytes(data + data)
    found, _ = read(tmp_path)
    assert [d.text for d in found] == [text, 2 * text]
    assert {d.language for d in found} == {language}


@pytest.mark.parametrize("packer", PACK)
def test_packed_rows(tmp_path: Path, packer: str) -> None:
    rows = [{"text": f"{n} {'word ' * 9}"} for n in range(4000)]
    data = "\n".join(map(json.dumps, rows)).encode()
    (tmp_path / f"a.jsonl{packer}").write_bytes(PACK[packer](data))
    found, _ = read(tmp_path)
    assert [d.text for d in found] == [row["text"] for row in rows]


@pytest.mark.parametrize("packer", [".xz", ".bz2"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_damaged_packed_files_cost_themselves(
    tmp_path: Path, packer: str, name: str, rng: random.Random
) -> None:
    data = json.dumps({"text": rng.randbytes(50_000).hex()}).encode()
    packed = bytearray(PACK[packer](data))
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / (name + packer)).write_bytes(packed)
    (tmp_path / ("garbage.txt" + packer)).write_bytes(b"no such format")
    (tmp_path / "good.txt").write_text("good")
    found, tally = read(tmp_path)
    assert [d.text for d in found] == ["good"]
    assert tally.file_drops == {f"corrupt_{packer[1:]}": 2}


@pytest.mark.data_full
@pytest.mark.parametrize("packer", PACK)
def test_a_cut_off_packed_file_gives_its_prefix(tmp_path: Path, packer: str) -> None:
    rng = random.Random(1)
    data = "".join(f"{rng.random()}\n" for _ in range(200_000)).encode()
    packed = PACK[packer](data)
    (tmp_path / f"a.txt{packer}").write_bytes(packed[: len(packed) * 2 // 3])
    (document,), tally = read(tmp_path)
    assert data.decode().startswith(document.text) and len(document.text) > 500_000
    assert tally.file_drops == {"truncated_file": 1}
    assert tally.worst() == {"truncated_file": {str(tmp_path / f"a.txt{packer}"): 1}}


def test_a_packed_bomb_is_too_large(tmp_path: Path) -> None:
    for packer, pack in PACK.items():
        (tmp_path / f"a.txt{packer}").write_bytes(pack(bytes(1) * (64 << 20)))
    found, tally = read(tmp_path)
    assert not found and tally.drops == {"too_large": 3}


TEXTS = ["plain", 'with "quotes", commas', "two\nlines\r\nand a third", "naïve 漢字", " blanks "]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".csv.xz"])
def test_csv(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / "a.csv"
    with file.open("w", newline="", encoding="utf-8-sig") as out:
        writer = csv.writer(out, delimiter="\t" if suffix == ".tsv" else ",")
        writer.writerows([["id", "text", "lang"], *([n, t, "py"] for n, t in enumerate(TEXTS))])
        writer.writerow(["5"])
    pack = PACK.get(Path(suffix).suffix, bytes)
    (tmp_path / f"b{suffix}").write_bytes(pack(file.read_bytes()))
    if suffix != ".csv":
        file.unlink()
    else:
        file.rename(tmp_path / "b.csv")
    found, tally = read(tmp_path, language_field="lang")
    assert [d.text for d in found] == TEXTS
    assert {d.language for d in found} == {"Python"}
    assert tally.drops == {"missing_text": 1}


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".csv.xz", ".tsv.bz2"])
def test_a_cut_off_row_of_a_table_is_left_out(tmp_path: Path, suffix: str) -> None:
    delimiter = "\t" if ".tsv" in suffix else ","
    rows = 'text,n\r\n"one",1\r\n"two\n""lines""",2\r\n'
    whole = rows.replace(",", delimiter).encode()
    half = whole[: whole.index(b"lines") + 3]
    pack = PACK.get(Path(suffix).suffix, bytes)
    (tmp_path / f"a{suffix}").write_bytes(pack(half))
    found, tally = read(tmp_path)
    assert [d.text for d in found] == ["one"] and tally.drops == {"truncated_row": 1}
    assert list(tally.worst()["truncated_row"]) == [str(tmp_path / f"a{suffix}")]
    for ended in (whole, whole.removesuffix(b"\r\n")):
        (tmp_path / f"a{suffix}").write_bytes(pack(ended))
        found, tally = read(tmp_path)
        assert [d.text for d in found] == ["one", 'two\n"lines"'] and not tally.drops
    (tmp_path / f"a{suffix}").write_bytes(pack(b"n,text\n1,one\n2,two\n3"))
    if delimiter == ",":
        found, tally = read(tmp_path)
        assert [d.text for d in found] == ["one", "two"] and tally.drops == {"truncated_row": 1}


@pytest.mark.parametrize("name", ["a.csv", "a.json"])
def test_nothing_of_a_corrupt_packed_table_gets_through(tmp_path: Path, name: str) -> None:
    data = b"text\none\ntwo\n" if name == "a.csv" else b'[{"text": "one"}, {"text": "two"}]'
    packed = bytearray(gzip.compress(data * (300_000 if name == "a.csv" else 1)))
    packed[-7] ^= 1
    (tmp_path / f"{name}.gz").write_bytes(packed)
    (tmp_path / "good.txt").write_text("good")
    found, tally = read(tmp_path)
    assert [d.text for d in found] == ["good"]
    assert tally.file_drops.keys() <= {"corrupt_gz", "unknown_type"} and len(tally.file_drops) == 1


def test_csv_without_the_column_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "good.txt").write_text("good")
    (document,), tally = read(tmp_path)
    assert document.text == "good" and tally.file_drops == {"unknown_type": 2}
    with pytest.raises(InputError, match="none is usable"):
        read(tmp_path / "empty.csv")


ROW = {"n": "12", "lang": "en", "body": "The document.", "a.b": "", "doc": {"markdown": "x"}}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "json", "json.xz", "jsonl", "parquet"])
def test_a_table_without_the_column_offers_those_that_it_has(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    pack = PACK.get(path.suffix, bytes)
    if suffix == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist([ROW]), path)
    elif suffix.startswith("json"):
        path.write_bytes(pack(json.dumps(ROW if suffix == "jsonl" else [ROW]).encode()))
    else:
        delimiter = "\t" if suffix == "tsv" else ","
        flat = {name: value for name, value in ROW.items() if isinstance(value, str)}
        lines = (delimiter.join(line) for line in (flat, flat.values()))
        path.write_bytes(pack("\n".join(lines).encode()))
    with pytest.raises(InputError) as error:
        read(tmp_path)
    problem = error.value.problems[0]
    assert problem.fix == "data.build.sources.0.text_field=body"
    named = problem.fact + problem.why
    assert "lang" in named and "'doc" not in named and str(path) in named
    found, _ = read(tmp_path, text_field="body")
    assert [d.text for d in found] == ["The document."]


def test_columns_are_offered_as_they_are_typed() -> None:
    assert text_columns({"a": "x", "c.d": "xx", "e": 5, "f": {"g": "xxx", "h": 1}}) == [
        *("f.g", "c.d", "a")
    ]
    assert offered(["Review Text"], "2-files")[1] == (
        "'data.build.sources.2.text_field=Review Text'"
    )


def test_a_column_of_other_values_offers_those_of_text(tmp_path: Path) -> None:
    rows = [{"text": ["a"], "content": "b"}] * 9
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=r"text_field has content(.|\n)*text_field=content"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("rule", "texts"), [("drop", ["a", "b"]), ("replace", ["a", "\ufffd", "b"])]
)
def test_bytes_that_are_no_utf8(tmp_path: Path, rule: Any, texts: list[str]) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\na\n\xff\nb\n")
    (tmp_path / "b.json").write_bytes(b'[{"text":"a"},{"text":"\xff"},{"text":"b"}]')
    found, tally = read(tmp_path, invalid_utf8=rule)
    assert [d.text for d in found] == 2 * texts
    assert tally.drops == ({"invalid_utf8": 2} if rule == "drop" else {})
    with pytest.raises(InputError, match="not UTF-8"):
        read(tmp_path)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".json.bz2"])
def test_lists_of_objects(tmp_path: Path, indent: int | None, suffix: str) -> None:
    rows: list[Any] = [{"text": f"{n} {'word ' * (n % 700)}", "n": [n]} for n in range(3000)]
    rows[7:7] = [3, {"other": 1}]
    data = json.dumps(rows, indent=indent).encode()
    (tmp_path / f"a{suffix}").write_bytes(PACK.get(Path(suffix).suffix, bytes)(data))
    found, tally = read(tmp_path)
    assert [d.text for d in found] == [r["text"] for r in rows if isinstance(r, dict) and "n" in r]
    assert tally.drops == {"not_an_object": 1, "missing_text": 1}


@pytest.mark.parametrize("end", ['{"text": "tw', "", "nonsense]", '{"text": ' + "[" * 100_000])
def test_a_broken_list_gives_what_comes_before(tmp_path: Path, end: str) -> None:
    (tmp_path / "a.json").write_text('[{"text": "one"}, {"text": "two"},' + end)
    found, tally = read(tmp_path)
    assert [d.text for d in found] == ["one", "two"] and tally.drops == {"broken_json": 1}


@pytest.mark.parametrize("content", ["[]", "[1]", "{}", "[" * 100_000, "", '["text"]', "[{", "é"])
def test_other_json_is_of_no_known_type(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    (tmp_path / "good.txt").write_text("good")
    (document,), tally = read(tmp_path)
    assert document.text == "good" and tally.file_drops == {"unknown_type": 1}


def notebook(**metadata: Any) -> dict[str, Any]:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "Some *prose*."]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "x = 1\n"], "outputs": ["big"]},
        {"cell_type": "code", "source": "%%bash\nls", "outputs": []},
        {"cell_type": "raw", "source": ""},
        {"cell_type": "code", "source": "!ls\nprint(x)"},
    ]
    return {"cells": cells, "metadata": metadata, "nbformat": 4}


SCRIPT = """\
# # Title
#
# Some *prose*.

# %matplotlib inline
x = 1

# %%bash
# ls

# !ls
print(x)
"""


@pytest.mark.parametrize("suffix", [".ipynb", ".ipynb.gz"])
def test_notebooks(tmp_path: Path, suffix: str) -> None:
    data = json.dumps(notebook(kernelspec={"language": "python"})).encode()
    (tmp_path / f"a{suffix}").write_bytes(PACK.get(Path(suffix).suffix, bytes)(data))
    for name, content in (("bad", "{"), ("list", "[1]"), ("no_cells", '{"cells": [1]}')):
        (tmp_path / f"{name}.ipynb").write_text(content)
    (tmp_path / "deep.ipynb").write_text("[" * 100_000)
    (tmp_path / "empty.ipynb").write_text('{"cells": []}')
    (document,), tally = read(tmp_path)
    assert document.text == SCRIPT
    assert (document.domain, document.language) == ("code", "Python")
    assert tally.drops == {"broken_json": 4, "empty": 1}


@pytest.mark.parametrize(
    ("metadata", "language", "first"),
    [
        ({}, "Python", "# # Title"),
        ({"language_info": {"name": "ipython3"}}, "Python", "# # Title"),
        ({"language_info": {"name": "julia"}}, "Julia", "# # Title"),
        ({"kernelspec": {"language": "typescript"}}, "TypeScript", "// # Title"),
        ({"kernelspec": {"language": "Haskell"}}, "Haskell", "-- # Title"),
        ({"kernelspec": None}, "Python", "# # Title"),
    ],
)
def test_kernels(metadata: dict[str, Any], language: str, first: str) -> None:
    found = notebook_script(json.dumps(notebook(**metadata)).encode())
    assert found is not None
    assert found[1] == language and found[0].startswith(first + "\n")
    assert ("\n%matplotlib" in found[0]) == (language != "Python")


def test_notebooks_of_format_3() -> None:
    cells = [{"cell_type": "code", "input": ["a = 1"]}, {"cell_type": "heading", "source": "H"}]
    data = json.dumps({"worksheets": [{"cells": cells}], "nbformat": 3}).encode()
    assert notebook_script(data) == ("a = 1\n\n# H\n", "Python")


def test_fields_by_path() -> None:
    row = {"a": {"b": "x", "c.d": {"e": "y"}}, "a.b": "own", "f": None, "g": "text"}
    assert value_at(row, "a.b") == "own"
    assert value_at({"a": {"b": "x"}}, "a.b") == "x"
    assert value_at(row, r"a.c\.d.e") == "y"
    assert value_at(row, r"a\.b") == "own"
    for path in ("f.x", "g.x", "h", "h.i", "a.x", "", "."):
        assert value_at(row, path) is None
    assert column_of("a.b", ["a"]) == "a" and column_of("a.b", ["a", "a.b"]) == "a.b"
    assert column_of(r"a\.b", ["a.b"]) == "a.b" and column_of("x.b", ["a"]) is None


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_nested_text(tmp_path: Path, suffix: str) -> None:
    rows = [{"doc": {"body": f"text {n}", "meta": {"lang": "C"}}, "n": n} for n in range(5)]
    rows.append({"doc": None, "n": 5})
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    found, tally = read(tmp_path, text_field="doc.body", language_field="doc.meta.lang")
    assert [d.text for d in found] == [f"text {n}" for n in range(5)]
    assert {d.language for d in found} == {"C"} and tally.drops == {"missing_text": 1}


def test_a_broken_notebook_is_named(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "broken.ipynb").write_text('{"cells": [')
    tally = Tally("ingest")
    source = FilesSource("0-files", SourceConfig(kind="files", path=str(tmp_path)))
    assert len(list(source.documents(tally))) == 1
    assert tally.worst() == {"broken_json": {str(tmp_path / "broken.ipynb"): 1}}
