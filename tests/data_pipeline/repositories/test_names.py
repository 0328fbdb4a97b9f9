"""Which repository a file belongs to, and files put together and taken apart."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.repositories.buckets import Buckets, Entry, entries, read
from data_pipeline.repositories.layout import (
    File,
    apart,
    is_joined,
    join,
    repository_key,
    single,
)
from data_pipeline.repositories.names import Membership, membership
from data_pipeline.repositories.stages import _groups as joined_groups
from data_pipeline.schema import Document
from tests.data_pipeline.conftest import random_text


def document(
    path: str,
    source: str = "0-files",
    domain: str = "code",
    meta: Mapping[str, Any] | None = None,
) -> Document:
    return Document(f"{source}/{path}", "x = 1\n", domain, "Python", source, path, meta or {})


@pytest.mark.parametrize(
    ("path", "depth", "name", "inner"),
    [
        ("repo/a.py", 1, "repo", "a.py"),
        ("repo/src/a.py", 1, "repo", "src/a.py"),
        ("me/repo/a.py", 2, "me/repo", "a.py"),
        ("1:/repo/a.py", 1, "repo", "a.py"),
        ("12:/me/repo/x/a.py", 2, "me/repo", "x/a.py"),
        ("sub/lib-1.0.tar.gz!lib/a.py", 1, "lib-1.0", "lib/a.py"),
        ("lib.ZIP!a.py", 3, "lib", "a.py"),
        ("what!/a.py", 1, "what!", "a.py"),
        ("c:/a.py", 1, "c:", "a.py"),
    ],
)
def test_folders_and_archives(path: str, depth: int, name: str, inner: str) -> None:
    found = membership(document(path), depth)
    assert found is not None and found[1:] == (name, inner)


@pytest.mark.parametrize(
    ("path", "depth"),
    [("a.py", 1), ("1:/a.py", 1), ("/abs/repo/a.py", 1), ("repo/a.py", 2), ("x!a.py", 1)],
)
def test_files_of_none(path: str, depth: int) -> None:
    assert membership(document(path), depth) is None


def test_packages_rows_and_samples() -> None:
    package = document("npm/one-1.0/lib/a.py", "0-npm", meta={"package": "npm/one-1.0"})
    assert membership(package, 1) == Membership("0-npm\0npm/one-1.0/", "one-1.0", "lib/a.py")
    inside = document("npm/one-1.0/a.zip!b.py", "0-npm", meta={"package": "npm/one-1.0"})
    assert membership(inside, 1) == Membership("0-npm\0npm/one-1.0/", "one-1.0", "a.zip!b.py")
    named = {"path": "src/a.py", "repository": "me/x"}
    row = document("repo/rows.jsonl", meta={"row": 0} | named)
    assert membership(row, 1) == Membership("row\0me/x", "me/x", "src/a.py")
    other = document("other.parquet", "1-hf", meta={"row": 7} | named)
    assert membership(other, 1) == membership(row, 1)
    for name in ("path", "repository", "other"):
        meta = {"row": 0} | {key: value for key, value in named.items() if key == name}
        assert membership(document("repo/rows.jsonl", meta=meta), 1) is None
        assert membership(document("repo/a.zip!rows.jsonl", meta=meta), 1) is None
    sample = document("site/numpy/core/a.py", "0-sample")
    assert membership(sample, 1) == Membership("0-sample\0site/numpy/", "numpy", "core/a.py")
    assert membership(document("repo/a.txt", domain="text"), 1) is None


def test_repositories_of_two_places_differ() -> None:
    places = ["r/a.py", "1:/r/a.py", "r.zip!a.py", "x/r.zip!a.py", "r.tar!a.py", "1:/r.zip!a.py"]
    sources = ("0-files", "1-files")
    keys = [membership(document(path, source), 1) for path in places for source in sources]
    assert len({found.key for found in keys if found}) == 2 * len(places)


def random_files(rng: random.Random) -> list[File]:
    names = [f"d{rng.randrange(9)}/{random_text(rng, 5)}{i}" for i in range(rng.randrange(2, 9))]
    return [
        File(name, Document(f"{i}", random_text(rng, 99), "code", "C", "s", f"r/{name}"))
        for i, name in enumerate(names)
    ]


def test_joined_files_come_apart(rng: random.Random) -> None:
    for _ in range(50):
        files = random_files(rng)
        name = random_text(rng, 9)
        whole = join("key", name, files)
        assert apart(whole) == (name, [(path, d.text) for path, d in files])
        assert whole.text == f"{name}\n" + "".join(f"{path}\n{d.text}" for path, d in files)
        assert is_joined(whole) and repository_key(whole) == "key"
        assert [tuple(f) for f in whole.place.files] == [(f"r/{p}", None) for p, _ in files]
        assert join("key", name, files[::-1]).id != whole.id
        alone = single("key", files[0].document)
        assert not is_joined(alone) and repository_key(alone) == "key"
        before = files[0].document
        assert (alone.id, alone.text, alone.place) == (before.id, before.text, before.place)
        assert repository_key(before) is None


@pytest.mark.parametrize("buffer_bytes", [1, 3000, 1 << 30])
def test_files_come_back_from_buckets(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, buffer_bytes: int
) -> None:
    monkeypatch.setattr("data_pipeline.repositories.buckets._BUFFER_BYTES", buffer_bytes)
    sent: dict[str, Document] = {}
    files: dict[int, list[Path]] = {}
    for chunk in range(3):
        buckets = Buckets(tmp_path, chunk, 4)
        for i in range(40):
            text = random_text(rng, rng.randrange(1, 300))
            path = f"d/{rng.choice('abc')}{i}.c"
            name = f"{chunk}-{i}"
            sent[name] = Document(name, text, "code", "C", "s", path, {"row": i})
            buckets.add(sent[name], Membership(f"k{i % 11}", "n", path))
        for file, entry in buckets.finish().items():
            assert file.stat().st_size == entry["bytes"]
            files.setdefault(int(file.parent.name[-5:]), []).append(file)
    found = {}
    for bucket in files.values():
        of_bucket = sorted(entries(bucket))
        for entry in of_bucket:
            found[entry.document_id] = read(bucket, entry)
            assert entry.path == found[entry.document_id].path
            text = found[entry.document_id].text
            assert entry.num_bytes == len(f"{entry.path}\n{text}".encode())
        keys = {entry.key for entry in of_bucket}
        others = [e for name in files if files[name] is not bucket for e in entries(files[name])]
        assert not keys & {entry.key for entry in others}
    assert found == sent


def test_folders_stay_together_in_the_order(tmp_path: Path) -> None:
    paths = ["a/z.c", "a-b/c.c", "a/b/c.c", "a.c", "B.c", "a/b.c"]
    buckets = Buckets(tmp_path, 0, 1)
    for path in paths:
        buckets.add(document(path), Membership("k", "n", path))
    (file,) = buckets.finish()
    order = ["B.c", "a/b/c.c", "a/b.c", "a/z.c", "a-b/c.c", "a.c"]
    assert [entry.path for entry in sorted(entries([file]))] == order


@pytest.mark.parametrize(
    ("max_bytes", "sizes"), [(1, [1, 1, 1]), (21, [1, 2]), (22, [2, 1]), (31, [2, 1]), (32, [3])]
)
def test_the_limit_is_exact(max_bytes: int, sizes: list[int]) -> None:
    """The name and its line end are 2 bytes, the files 10, 10 and 10."""
    found = [Entry("s", "k", "C", f"{i}", f"{i}", "n", 10, 0, 0, 0) for i in range(3)]
    if max_bytes == 21:
        found[0] = found[0]._replace(num_bytes=99)  # larger alone than the limit
        found[1:] = [entry._replace(num_bytes=9) for entry in found[1:]]
    groups = list(joined_groups(found, max_bytes))
    assert [len(group) for group in groups] == sizes
    assert [entry for group in groups for entry in group] == found
    others = [found[0], found[1]._replace(language="C++"), found[2]._replace(key="other")]
    assert [len(group) for group in joined_groups(others, 10**6)] == [1, 1, 1]
