"""Sources in parts: together they are the whole, however small the parts are."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.readers import open_source
from data_pipeline.readers.pickled import unpickle_part
from data_pipeline.schema import Document, Tally
from loopcoder.config.build import SourceConfig
from loopcoder.errors import InputError


def read(parts: Any) -> tuple[list[Document], Tally]:
    """Read parts as their tasks do: pickled, in any order, each with a tally of its own."""
    total = Tally("ingest")
    found: dict[int, list[Document]] = {}
    for number in random.Random(len(parts)).sample(range(len(parts)), len(parts)):
        tally = Tally("ingest")
        part: Any = unpickle_part(pickle.dumps(parts[number]), [])
        found[number] = list(part.documents(tally))
        tally.check()
        total.add(tally)
    return [document for number in sorted(found) for document in found[number]], total


@pytest.fixture
def folder(tmp_path: Path, rng: random.Random) -> Path:
    root = tmp_path / "in"
    (root / "sub").mkdir(parents=True)
    for i in range(rng.randint(5, 40)):
        (root / f"note{i}.txt").write_text("word " * rng.randint(1, 400))
        (root / "sub" / f"m{i}.py").write_text(f"x = {i}\n" * rng.randint(1, 90))
    (root / "big.txt").write_text("long " * 9000)
    rows = [json.dumps({"text": f"row {i}"}) for i in range(50)] + ["{broken"]
    (root / "rows.jsonl").write_text("\n".join(rows))
    return root


def test_files_in_parts_are_the_files(folder: Path, rng: random.Random) -> None:
    source = open_source(SourceConfig(kind="files", path=str(folder)), 0)
    whole, tally = read([source])
    size = rng.randint(1, 20_000)
    parts = source.parts(size)
    assert len(parts) > 1
    again, sum_of_parts = read(parts)
    assert again == whole
    assert sum_of_parts == tally
    assert sum(part.size for part in parts) == source.size
    # each but the last is full, and none holds a file more than it takes to be full
    assert all(part.size >= size for part in parts[:-1])
    assert len(source.parts(1 << 40)) == 1


def test_a_source_with_a_limit_is_one_part(folder: Path) -> None:
    for limit in ({"max_documents": 3}, {"max_bytes": 300}):
        source = open_source(SourceConfig(kind="files", path=str(folder), **limit), 0)  # type: ignore[arg-type]
        assert len(source.parts(1)) == 1


def test_a_finished_corpus_below_the_documents_is_not_read(folder: Path) -> None:
    before = open_source(SourceConfig(kind="files", path=str(folder)), 0).identity
    corpus = folder / "cache" / "sample-1"
    (corpus / "train").mkdir(parents=True)
    (corpus / "token_bytes.npy").write_bytes(b"")
    (corpus / "report.html").write_text("<p>" + "page " * 100)
    (corpus / "train" / "a.txt").write_text("text")
    work = folder / "cache" / ".sample-1.work"
    work.mkdir()
    (work / "rows.jsonl").write_text('{"text": "a"}\n')
    assert open_source(SourceConfig(kind="files", path=str(folder)), 0).identity == before


def test_a_data_set_in_parts(tmp_path: Path, rng: random.Random) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"text": f"row {i} " * rng.randint(1, 30), "lang": "C"} for i in range(200)]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    config = SourceConfig(
        kind="hf", path=str(tmp_path / "saved"), language_field="lang", licence="MIT"
    )
    source = open_source(config, 0)
    whole, tally = read([source])
    parts = source.parts(rng.randint(100, 3000))
    assert len(parts) > 1
    assert read(parts) == (whole, tally)
    assert [d.meta["row"] for d in whole] == list(range(200))


def packages(folder: Path) -> None:
    """Write what `fetch_npm` would have."""
    entries = []
    for name, licences in (("one", ["MIT"]), ("two", [])):
        target = folder / "npm" / f"{name}-1.0"
        target.mkdir(parents=True)
        (target / "index.js").write_text(f"const {name} = 1;\n")
        entries.append(
            {
                "registry": "npm",
                "name": name,
                "version": "1.0",
                "sha256": name * 3,
                "licences": licences,
                "folder": f"npm/{name}-1.0",
            }
        )
    (folder / "packages.lock.json").write_text(json.dumps(entries))


def test_packages_are_the_same_wherever_they_lie(tmp_path: Path) -> None:
    found = []
    for place in ("a", "b/c"):
        folder = tmp_path / place
        packages(folder)
        config = SourceConfig(kind="npm", path=str(folder), packages=["one", "two"], licence="ISC")
        source = open_source(config, 1)
        documents, _ = read(source.parts(1))
        assert source.roots == [str(folder)]
        found.append((source.identity, source.provenance, documents))
    assert found[0] == found[1]
    identity, provenance, documents = found[0]
    assert identity == [["npm", "one", "1.0", "oneoneone"], ["npm", "two", "1.0", "twotwotwo"]]
    assert provenance["licence"] == "ISC"
    assert [p["licences"] for p in provenance["packages"]] == [["MIT"], []]
    assert [(d.path, d.meta) for d in documents] == [
        ("npm/one-1.0/index.js", {"package": "npm/one-1.0", "licence": ["MIT"]}),
        ("npm/two-1.0/index.js", {"package": "npm/two-1.0"}),
    ]


def test_packages_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has the packages"):
        open_source(SourceConfig(kind="npm", path=str(tmp_path)), 0)


def test_columns_of_their_own_tell_path_and_licence(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    rows = [{"text": "x = 1", "file": "a/b.py", "spdx": "MIT"}, {"text": "y", "file": None}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    config = SourceConfig(
        kind="files", path=str(tmp_path), path_field="file", licence_field="spdx", domain="code"
    )
    documents, _ = read([open_source(config, 0)])
    assert [d.meta for d in documents] == [
        {"row": 0, "path": "a/b.py", "licence": "MIT"},
        {"row": 1},
    ] * 2
