"""Only the columns that are needed are read, and language columns that name prose give text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.readers import open_source
from data_pipeline.schema import Document, Tally
from loopcoder.config.build import SourceConfig
from loopcoder.errors import InputError


def read(**fields: Any) -> list[Document]:
    source = open_source(SourceConfig(**fields), 0)
    tally = Tally("read")
    documents = [d for part in source.parts(10_000) for d in part.documents(tally)]
    tally.check()
    return documents


@pytest.fixture
def illustrated(tmp_path: Path) -> Path:
    """Rows with an image and a sound that nothing can decode, and a struct."""
    datasets = pytest.importorskip("datasets")
    content = {"bytes": b"nothing", "path": "a"}
    data = datasets.Dataset.from_dict(
        {
            "text": ["one", "two"],
            "lang": ["Go", "Plain Text"],
            "image": [content] * 2,
            "sound": [content] * 2,
            "about": [{"a": 1}] * 2,
        }
    )
    data = data.cast_column("image", datasets.Image()).cast_column("sound", datasets.Audio())
    data.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "parquet").mkdir()
    data.to_parquet(str(tmp_path / "parquet/train.parquet"))
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "folder", "streaming"),
    [
        ("hf", "saved", False),
        ("hf", "parquet", False),
        ("hf", "parquet", True),
        ("files", "parquet", False),
    ],
)
def test_other_columns_are_not_decoded(
    illustrated: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
    folder: str,
    streaming: bool,
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    found = read(
        kind=kind, path=str(illustrated / folder), language_field="lang", streaming=streaming
    )
    assert [(d.text, d.domain, d.language) for d in found] == [
        ("one", "code", "Go"),
        ("two", "text", "Text"),
    ]


def test_a_column_that_cannot_be_decoded_is_named_as_the_cause(illustrated: Path) -> None:
    with pytest.raises(InputError) as error:
        read(kind="hf", path=str(illustrated / "saved"), text_field="image")
    assert "UnidentifiedImageError" in str(error.value) and "network" not in str(error.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_damaged_file_is_not_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "d").mkdir()
    (tmp_path / "d/train.parquet").write_bytes(b"PAR1" + b"x" * 100)
    with pytest.raises(InputError, match=r"Parquet magic bytes not found") as error:
        read(kind="hf", path=str(tmp_path / "d"), streaming=streaming)
    assert "network" not in str(error.value)


def test_a_cause_is_shown_under_what_wraps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    fault: list[Exception] = []

    def fail(*args: object, **kwargs: object) -> None:
        try:
            raise fault[0]
        except Exception as e:
            raise RuntimeError("An error occurred while generating the dataset") from e

    monkeypatch.setattr(datasets, "load_dataset", fail)
    for cause, is_network in ((ValueError("bad row"), False), (TimeoutError("slow"), True)):
        fault[:] = [cause]
        with pytest.raises(InputError, match=f"generating.*because of .*{cause}") as error:
            read(kind="hf", path="a/b")
        assert ("network" in str(error.value)) == is_network


def test_rows_whose_language_is_prose(tmp_path: Path) -> None:
    names = ["text", "tex", "org", "plain text", "none", "natural language", "en", "Markdown", "c"]
    rows = [json.dumps({"text": f"row {name}", "lang": name}) for name in names]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    found = read(kind="files", path=str(tmp_path), language_field="lang")
    assert [(d.domain, d.language) for d in found] == [
        ("text", "Text"),
        ("text", "TeX"),
        ("text", "Org"),
        *[("text", "Text")] * 4,
        ("code", "Markdown"),
        ("code", "C"),
    ]


def test_a_data_set_offers_its_columns_of_text_and_reads_nested_ones(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"id": [1], "content": ["x y"], "doc": [{"body": "z"}]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(InputError, match=r"sources\.0\.text_field=content"):
        read(kind="hf", path=str(tmp_path / "saved"))
    documents = read(kind="hf", path=str(tmp_path / "saved"), text_field="doc.body")
    assert [d.text for d in documents] == ["z"]
