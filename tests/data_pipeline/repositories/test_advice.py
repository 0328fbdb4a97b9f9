"""What a build says of files without a repository, and of how much is held out."""

from __future__ import annotations

import csv
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.driver import prepare
from data_pipeline.report.repositories import in_words
from loopcoder.config.build import RepositoryConfig, SourceConfig
from loopcoder.data.corpus import Corpus
from loopcoder.errors import InputError
from tests.data_pipeline.builds import Config
from tests.data_pipeline.repositories.trees import Reader, fields, program, write

JOINED = RepositoryConfig(enabled=True)


@pytest.mark.data_full
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_the_columns_of_a_repository_that_are_missing_are_named(
    config: Config, tmp_path: Path, rng: random.Random, kind: str
) -> None:
    rows = [
        {"text": program(rng, 9), "repo": 7 + i % 5, "file": f"m{i}.py", "lang": "Python"}
        for i in range(40)
    ]
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq = pytest.importorskip("pyarrow.parquet")
        pa = pytest.importorskip("pyarrow")
        pq.write_table(pa.Table.from_pylist([row | {"score": 0.5} for row in rows]), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row | {"score": 0.5}) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, [*rows[0], "score"])
            table.writeheader()
            table.writerows(row | {"score": ""} for row in rows)

    def built(repository: str, file: str | None) -> Corpus:
        source = SourceConfig(
            kind="files",
            path=str(path),
            language_field="lang",
            repository_field=repository,
            path_field=file,
        )
        made = config(**fields(tmp_path, repository=JOINED, sources=[source]))
        return prepare(made, report=lambda _: None)

    with pytest.raises(InputError, match=r"(?s)path_field=null.*sources.0.path_field=COLUMN"):
        built("repo", None)
    assert not Path(config().build.cache_dir).exists(), "nothing was read"
    for repository, file, missing, said in (
        ("rep", "file", "repository_field=rep", "text, repo, file, lang, score"),
        ("repo", "fiel", "path_field=fiel", "text, repo, file, lang, score"),
        ("score", "file", "repository_field=score", "whole number"),
        ("repo.id", "file", "repository_field=repo.id", "text, repo, file"),
    ):
        with pytest.raises(InputError, match="no code file") as caught:
            built(repository, file)
        assert missing in str(caught.value) and said in str(caught.value)
    reader = Reader(built("repo", "file"))
    names = {reader.parsed(ids)[0] for split in ("train", "val") for ids in reader.documents(split)}
    assert names == {str(7 + i) for i in range(5)}


def told(config: Config, folder: Path, **changes: Any) -> list[str]:
    lines: list[str] = []
    prepare(config(**fields(folder, **({"repository": JOINED} | changes))), report=lines.append)
    return lines


@pytest.mark.data_full
def test_paths_that_are_repositories_are_warned_of(
    config: Config, tmp_path: Path, rng: random.Random
) -> None:
    tree = {f"r{n}/f{i}.py": program(rng, 9) for n in range(3) for i in range(6)}
    tree |= {f"r{n}/docs/f{i}.py": program(rng, 9) for n in range(3) for i in range(2)}
    folder = write(tmp_path / "tree", tree)
    paths = [str(folder / f"r{n}") for n in range(3)]
    lines = told(config, folder, sources=[SourceConfig(kind="files", path=paths)])
    (warning,) = [line for line in lines if "warning" in line]
    assert "18 of the 24 code files of source 0-files have no repository" in warning
    assert "the folder above as path" in warning
    (line,) = [line for line in lines if "repositories: 3" in line]
    assert "left single: 18 (18 of no repository)" in line
    # a folder too deep, and rows
    two = dataclasses.replace(JOINED, depth=2)
    (warning,) = [line for line in told(config, folder, repository=two) if "warning" in line]
    assert "data.build.repository.depth=1" in warning
    assert not [line for line in told(config, folder) if "warning" in line]
    rows = [
        {"text": text, "lang": "Python", "file": name}
        | ({"repo": name[:2]} if "docs" in name else {})
        for name, text in tree.items()
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(
        kind="files",
        path=str(tmp_path / "a.jsonl"),
        language_field="lang",
        path_field="file",
        repository_field="repo",
    )
    (warning,) = [line for line in told(config, folder, sources=[source]) if "warning" in line]
    assert "18 of the 24" in warning and "repository_field=COLUMN" in warning


@pytest.mark.parametrize(
    ("share", "held", "says"),
    [
        (0.5, 40, None),
        (0.5, 4, "4.0% of the code's tokens, where data.build.val_fraction=0.5 asks for 50.0%"),
        (0.01, 33, "asks for 1.0%"),
        (0.9, 46, None),
    ],
)
def test_what_was_asked_for_stands_beside_what_is_held_out(
    share: float, held: int, says: str | None
) -> None:
    manifest = {
        "val_fraction": share,
        "repositories": {"repositories": 3},
        "domains": {"code": {"val": {"tokens": held}}},
        "plan": {"languages": [{"domain": "code", "supply_tokens": 100 - held}]},
    }
    (line,) = in_words(manifest)
    assert ("asks for" in line) == (says is not None) and (says or "") in line
