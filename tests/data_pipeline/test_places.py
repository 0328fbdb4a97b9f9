"""The same files in another folder give the same corpus."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from data_pipeline.driver import prepare
from data_pipeline.readers import open_source
from data_pipeline.readers.base import Source
from data_pipeline.readers.places import Places
from data_pipeline.schema import Tally
from loopcoder.config.build import FimConfig, SourceConfig
from loopcoder.data.corpus import load_corpus
from tests.data_pipeline.builds import Config, hashes


def opened(path: str | list[str]) -> Source:
    return open_source(SourceConfig(kind="files", path=path), 0)


def ids(path: str | list[str]) -> list[tuple[str, str, str]]:
    return [(d.id, d.path, d.text) for d in opened(path).documents(Tally("ingest"))]


def test_names_count_from_the_source() -> None:
    places = Places(["/a", "/b/", "/a", "s3://c/x.txt", "/"])
    assert places.of("/a/x/y.py") == "x/y.py"
    assert places.of("/b/y.py") == "1:/y.py"
    assert places.of("/a/x.zip!y.py") == "x.zip!y.py"
    assert places.of("s3://c/x.txt") == "2:/x.txt"
    assert Places(["/a"]).of("/ab/c") == "/ab/c"


@pytest.mark.data_full
def test_a_copy_elsewhere_gives_the_same_corpus(
    config: Config, source_folder: Path, tmp_path: Path
) -> None:
    rows = '{"text":"a row of the first"}\n{"text":"and another row"}\n'
    (source_folder / "rows.jsonl").write_text(rows)
    other = tmp_path / "else" / "where" / "very" / "far"
    shutil.copytree(source_folder, other, copy_function=shutil.copy)
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
    moved = tmp_path / "moved"
    shutil.copytree(source_folder, moved)  # with its times
    lines: list[str] = []

    def build(folder: Path) -> Path:
        sources = [SourceConfig(kind="files", path=str(folder))]
        return prepare(config(sources=sources, fim=FimConfig(rate=0.5)), report=lines.append).dir

    first = build(source_folder)
    assert build(moved) == first
    lines.clear()
    second = build(other)
    assert second != first
    assert all(not line.endswith("have changed since") for line in lines)
    corpora = [load_corpus(folder, "hash") for folder in (first, second)]
    assert hashes(corpora[0]) == hashes(corpora[1])
    os.utime(source_folder / "note0.txt", (1, 1))
    build(source_folder)
    assert any(line.endswith("have changed since") for line in lines)


@pytest.mark.parametrize("kind", ["folder", "pattern", "file", "two"])
def test_ids_are_those_of_places(tmp_path: Path, kind: str) -> None:
    found = []
    for name in ("b", "a/c"):
        one, two = tmp_path / name / "x", tmp_path / name / ("y" if name == "b" else "a")
        for folder in (one, two):
            (folder / "sub").mkdir(parents=True)
            (folder / "sub" / "f.py").write_text(f"print({folder == one})\n")
            (folder / "g.jsonl").write_text('{"text":"row"}\n')
        path = {
            "folder": str(one),
            "pattern": f"{one}/*/*.py",
            "file": str(one / "g.jsonl"),
            "two": [str(one), str(two)],
        }[kind]
        found.append((ids(path), [entry[:2] for entry in opened(path).identity]))
    assert found[0] == found[1]
    assert len(found[0][0]) == {"folder": 2, "pattern": 1, "file": 1, "two": 4}[kind]
    assert len({id for id, _, _ in found[0][0]}) == len(found[0][0])
