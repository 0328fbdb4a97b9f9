"""URLs give the same documents as the folders that they stand for."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.readers import open_source
from data_pipeline.schema import Tally
from loopcoder.config.build import SourceConfig
from loopcoder.errors import InputError
from tests.data_pipeline.readers.test_archives import FILES, TEXTS, read


@pytest.fixture
def bucket(rng: random.Random) -> str:
    """A folder of fsspec's memory file system with all kinds of files."""
    fsspec = pytest.importorskip("fsspec")
    fs = fsspec.filesystem("memory")
    root = f"/bucket{rng.randrange(10**9)}"
    for name, content in FILES.items():
        fs.pipe(f"{root}/{name}", content)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("z.py", "zipped")
    fs.pipe(f"{root}/inner.zip", buffer.getvalue())
    fs.rm(f"{root}/pkg/inner.zip")
    return f"memory://{root}"


def test_urls(bucket: str) -> None:
    found, tally = read(bucket)
    assert sorted(d.text for d in found) == sorted([*TEXTS, "zipped"])
    assert {d.path for d in found} >= {"pkg/a.py", "inner.zip!z.py"}
    assert tally.drops == {"broken_json": 1, "empty": 1}
    assert [d.text for d in read(f"{bucket}/pkg/*.py")[0]] == ["print(1)\n"]
    assert [d.text for d in read([f"{bucket}/pkg/c.jsonl", f"{bucket}/**/a.py"])[0]] == [
        "print(1)\n",
        "row",
    ]
    with pytest.raises(InputError, match="does not exist"):
        read(f"{bucket}/none/*.py")
    with pytest.raises(InputError, match=r"cannot list nonsense://"):
        read("nonsense://bucket")


def test_parquet_by_url(bucket: str) -> None:
    pa = pytest.importorskip("pyarrow")
    import fsspec
    import pyarrow.parquet as pq

    with fsspec.open(f"{bucket}/p/a.parquet", "wb") as file:
        pq.write_table(pa.table({"text": ["one", "two"]}), file)
    assert [d.text for d in read(f"{bucket}/p")[0]] == ["one", "two"]


def test_url_that_vanishes(bucket: str) -> None:
    import fsspec

    source = open_source(SourceConfig(kind="files", path=f"{bucket}/pkg/a.py"), 0)
    fsspec.filesystem("memory").rm(f"{bucket.removeprefix('memory://')}/pkg/a.py")
    with pytest.raises(InputError, match=r"cannot read .*a\.py"):
        list(source.documents(Tally("read")))


def test_file_url(tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("text")
    for host in ("", "localhost"):
        assert [d.text for d in read(f"file://{host}{tmp_path}/a%20b.txt")[0]] == ["text"]


@pytest.mark.parametrize("path", ["file://", "file://a.txt", "file://sub/a.txt", "file://*.txt"])
def test_file_url_of_another_host(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read as the current folder, or as a path from the root."""
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"names no file of this machine"):
        read(path)


def test_what_a_store_refuses_is_not_missing(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    memory = type(fsspec.filesystem("memory"))
    listing, looking = memory.ls, memory.info

    def refuse(fs: Any, path: str, *args: Any, **options: Any) -> Any:
        if path.rstrip("/").endswith("pkg/sub"):
            raise PermissionError(13, "Forbidden", path)
        return listing(fs, path, *args, **options)

    # most stores walk, this one lists all at once
    monkeypatch.setattr(memory, "find", fsspec.AbstractFileSystem.find)
    assert len(read(bucket)[0]) == len(TEXTS) + 1
    monkeypatch.setattr(memory, "ls", refuse)
    with pytest.raises(InputError, match=r"cannot list .*Forbidden"):
        read(bucket)
    monkeypatch.setattr(memory, "ls", listing)

    def look(fs: Any, path: str, **options: Any) -> Any:
        if path.endswith("pkg"):
            raise PermissionError(13, "Forbidden", path)
        return looking(fs, path, **options)

    monkeypatch.setattr(memory, "info", look)
    with pytest.raises(InputError, match=r"cannot list .*Forbidden"):
        read(f"{bucket}/pkg")


@pytest.mark.parametrize("pattern", ["", "/*", "/**", "/*/*"])
def test_patterns_skip_what_folders_skip(bucket: str, pattern: str) -> None:
    found, tally = read(f"{bucket}{pattern}")
    assert not {"hidden", "copy"} & {d.text for d in found}
    assert len(found) >= 5
    assert tally.file_drops["skipped_folder"] >= 1


def test_a_file_of_a_store_that_changes(bucket: str) -> None:
    import fsspec

    source = open_source(SourceConfig(kind="files", path=f"{bucket}/pkg/a.py"), 0)
    fsspec.filesystem("memory").pipe(f"{bucket.removeprefix('memory://')}/pkg/a.py", b"another")
    with pytest.raises(InputError, match=r"a\.py was changed after the files were listed"):
        list(source.documents(Tally("read")))
