"""Parquet: damage costs its row group; text of any type is text; odd columns cost nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.readers import open_source, parquet
from data_pipeline.schema import Document, Tally
from loopcoder.config.build import SourceConfig
from loopcoder.errors import InputError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def read(path: Path, **fields: Any) -> tuple[list[Document], Tally]:
    source = open_source(SourceConfig(kind="files", path=str(path), **fields), 0)
    tally = Tally("read")
    found = list(source.documents(tally))
    tally.check()
    return found, tally


@pytest.mark.parametrize("damaged", [0, 2, 4])
@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip"])
def test_a_damaged_row_group_costs_only_itself(
    tmp_path: Path, rng: random.Random, damaged: int, compression: str
) -> None:
    texts = [rng.randbytes(100).hex() for _ in range(450)]
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": texts}),
        *(path,),
        row_group_size=100,
        compression=compression,
        use_dictionary=False,
    )
    whole, _ = read(path)
    column = pq.ParquetFile(path).metadata.row_group(damaged).column(0)
    data = bytearray(path.read_bytes())
    start, size = column.data_page_offset, column.total_compressed_size
    data[start + 40 : start + size - 40] = bytes(size - 80)
    path.write_bytes(data)
    found, tally = read(path)
    lost = range(100 * damaged, min(100 * damaged + 100, 450))
    assert [d.text for d in found] == [t for i, t in enumerate(texts) if i not in lost]
    assert [d.id for d in found] == [d.id for i, d in enumerate(whole) if i not in lost]
    assert tally.drops == {"corrupt_rows": len(lost)}
    assert tally.worst() == {"corrupt_rows": {str(path): len(lost)}}
    assert not tally.file_drops


def test_a_checksum_of_a_page_is_looked_at(tmp_path: Path) -> None:
    texts = ["a" * 50 + str(i) for i in range(100)]
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": texts}),
        *(path,),
        row_group_size=50,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    path.write_bytes(path.read_bytes().replace(b"aaaa7", b"aabb7", 1))
    found, tally = read(path)
    assert [d.text for d in found] == texts[50:] and tally.drops == {"corrupt_rows": 50}


BAD = [b"good", b"bad\xe9", None, b"good"]
TYPES = [
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()),
    *(pa.binary_view(), pa.dictionary(pa.int8(), pa.string())),
    *(pa.dictionary(pa.int32(), pa.large_string()), pa.dictionary(pa.int32(), pa.binary())),
]


def column(values: list[bytes | None], kind: Any) -> Any:
    """Return values as a column of a type, although they are no UTF-8."""
    plain = pa.array(values, pa.binary())
    if pa.types.is_dictionary(kind):
        encoded = plain.dictionary_encode()
        words = column(encoded.dictionary.to_pylist(), kind.value_type)
        return pa.DictionaryArray.from_arrays(encoded.indices.cast(kind.index_type), words)
    if "view" in str(kind):
        plain = plain.cast(pa.binary_view())
    elif "large" in str(kind):
        plain = plain.cast(pa.large_binary())
    return plain.view(kind)


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("name", ["text", "lang"])
def test_invalid_utf8_in_columns_of_all_types(tmp_path: Path, kind: Any, name: str) -> None:
    path = tmp_path / "a.parquet"
    columns = {"text": pa.array(["t"] * 4), "lang": pa.array(["Python"] * 4)}
    pq.write_table(pa.table(columns | {name: column(BAD, kind)}), path)
    fields = {"language_field": "lang"}
    with pytest.raises(InputError, match=r"1 document is not UTF-8: a row of .*a\.parquet"):
        read(path, **fields)
    found, tally = read(path, **fields, invalid_utf8="drop")
    assert tally.drops["invalid_utf8"] == 1 and tally.rows_in == 4
    assert len(found) == (2 if name == "text" else 3)
    found, tally = read(path, **fields, invalid_utf8="replace")
    assert tally.notes["invalid_utf8_replaced"] == 1 and "invalid_utf8" not in tally.drops
    if name == "text":
        assert [d.text for d in found] == ["good", "bad\ufffd", "good"]


@pytest.mark.parametrize(("kind", "entries"), [("int8", 100), ("uint8", 200), ("uint16", 40_000)])
def test_a_dictionary_with_more_entries_than_its_indices_hold(
    tmp_path: Path, kind: str, entries: int
) -> None:
    """Chunks with dictionaries of their own may be more in all than one of them can be."""
    index = pa.array(range(entries), getattr(pa, kind)())
    chunks = [
        pa.DictionaryArray.from_arrays(index, [f"L{chunk}-{i}" for i in range(entries)])
        for chunk in range(2)
    ]
    texts = [str(i) for i in range(2 * entries)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts, "lang": pa.chunked_array(chunks)}), path)
    found, tally = read(path, language_field="lang")
    assert [d.text for d in found] == texts
    assert len({d.language for d in found}) == 2 * entries
    assert not tally.file_drops and not tally.drops


def test_65_537_languages(tmp_path: Path) -> None:
    languages = pa.array([f"L{i}" for i in range(65_537)]).dictionary_encode()
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"] * 65_537, "lang": languages}), path)
    assert len(read(path, language_field="lang")[0]) == 65_537


ODD = {
    "list": pa.array([["a"], None], pa.list_(pa.string())),
    "list of bad text": pa.array([[b"\xff"], None], pa.list_(pa.binary())),
    "struct": pa.array([{"x": "a"}, None]),
    "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    "decimal": pa.array([1, None], pa.decimal128(38, 10)),
    "date": pa.array([2**52, None], pa.int64()).view(pa.timestamp("ms")),
    "null": pa.nulls(2),
    "boolean": pa.array([True, None]),
}


@pytest.mark.parametrize("name", ODD)
def test_columns_that_hold_no_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ODD[name]}), path)
    (tmp_path / "b.txt").write_text("good")
    found, tally = read(tmp_path)
    assert [d.text for d in found] == ["good"]
    assert tally.drops["missing_text"] + tally.drops["text_not_a_string"] == 2
    # beside text, they are not looked at
    pq.write_table(pa.table({"text": ["a", "b"], "lang": ODD[name], "other": ODD[name]}), path)
    found, _ = read(path, language_field="lang")
    assert [d.language for d in found] == ["Text", "Text"]


def test_two_columns_of_a_name_and_no_rows(tmp_path: Path) -> None:
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_text("good")
    assert read(tmp_path)[0][-1].text == "good"


def test_large_rows_are_decoded_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 5000)
    sizes: list[int] = []
    values = parquet._values
    monkeypatch.setattr(
        parquet,
        "_values",
        lambda column, *rest: (sizes.append(len(column)), values(column, *rest))[1],
    )
    texts = [f"{i:01000}" for i in range(100)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", compression="none",
                   use_dictionary=False)  # fmt: skip
    assert [d.text for d in read(tmp_path)[0]] == texts
    assert 1 < max(sizes) <= 5
