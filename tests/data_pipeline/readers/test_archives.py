"""Archives give the same documents as the folders that they hold."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.readers import archives, open_source
from data_pipeline.schema import Document, Tally
from loopcoder.config.build import SourceConfig

FILES = {
    "pkg/a.py": b"print(1)\n",
    "pkg/sub/b.h": b"namespace n {}\n",
    "pkg/README": b"Read me.\n",
    "pkg/.hidden.py": b"hidden",
    "pkg/node_modules/x.js": b"copy",
    "pkg/c.jsonl": b'{"text": "row"}\nbroken\n',
    "pkg/d.jsonl.gz": gzip.compress(b'{"text": "packed row"}\n'),
    "pkg/e.bin": b"\0",
    "pkg/f.py": b"",
    "pkg/inner.zip": b"PK",
}
TEXTS = ["Read me.\n", "namespace n {}\n", "packed row", "print(1)\n", "row"]


def read(path: str | Path | list[str], **fields: Any) -> tuple[list[Document], Tally]:
    wanted = path if isinstance(path, list) else str(path)
    source = open_source(SourceConfig(kind="files", path=wanted, **fields), 0)
    tally = Tally("read")
    found = list(source.documents(tally))
    tally.check()
    json.dumps(source.identity)
    return found, tally


def tar(path: Path, files: dict[str, bytes], mode: str) -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def zipped(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def tar_zst(path: Path, files: dict[str, bytes]) -> None:
    zstandard = pytest.importorskip("zstandard")
    plain = path.with_suffix("")
    tar(plain, files, "w")
    path.write_bytes(zstandard.compress(plain.read_bytes()))
    plain.unlink()


WRITERS: dict[str, Callable[[Path, dict[str, bytes]], None]] = {
    "a.tar": lambda p, f: tar(p, f, "w"),
    "a.tar.gz": lambda p, f: tar(p, f, "w:gz"),
    "a.tgz": lambda p, f: tar(p, f, "w:gz"),
    "a.tar.zst": tar_zst,
    "a.zip": zipped,
    "a-1.0-py3-none-any.whl": zipped,
}


@pytest.mark.parametrize("name", WRITERS)
def test_archives(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, FILES)
    found, tally = read(tmp_path)
    assert sorted(d.text for d in found) == TEXTS
    by_text = {d.text: d for d in found}
    assert by_text["namespace n {}\n"].language == "C++"
    assert by_text["Read me.\n"].domain == "text"
    assert by_text["print(1)\n"].path == f"{name}!pkg/a.py"
    assert len({d.id for d in found}) == 5
    assert tally.drops == {"broken_json": 1, "empty": 1}
    left_out = ("unknown_type", "nested_archive", "hidden", "skipped_folder")
    assert tally.file_drops == dict.fromkeys(left_out, 1)
    assert not list(tmp_path.rglob("*.py"))


@pytest.mark.parametrize("name", WRITERS)
def test_paths_that_lead_out_of_an_archive(tmp_path: Path, name: str) -> None:
    bad = {"../a.py": b"1", "/etc/a.py": b"2", "x/../../a.py": b"3", "C:/a.py": b"4"}
    WRITERS[name](tmp_path / name, {**bad, "good.py": b"5"})
    found, tally = read(tmp_path)
    assert [d.text for d in found] == ["5"]
    assert tally.file_drops == {"unsafe_member": 4}


def test_links_and_second_copies_in_a_tar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"link{kind!r}.py")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for content in (b"one", b"two"):
            info = tarfile.TarInfo("a.py")
            info.size = 3
            archive.addfile(info, io.BytesIO(content))
    found, tally = read(tmp_path)
    assert [d.text for d in found] == ["one"]
    assert tally.file_drops == {"duplicate_member": 1, "link_member": 4}


def test_members_are_called_as_their_documents(tmp_path: Path) -> None:
    """`tar -c .` puts ./ before each name."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("link.py", "b.py", ".hidden", "node_modules/c.js", "../d.py"):
            info = tarfile.TarInfo(f"./{name}")
            if name == "link.py":
                info.type, info.linkname = tarfile.SYMTYPE, "b.py"
            archive.addfile(info)
    source = open_source(SourceConfig(kind="files", path=str(tmp_path)), 0)
    left_out: list[str] = []
    tally = Tally("read", listed=lambda drop: left_out.append(source.place_of(drop.place.path)))
    assert not list(source.documents(tally))
    names = ("../d.py", ".hidden", "b.py", "link.py", "node_modules/c.js")
    assert sorted(left_out) == [f"a.tar!{name}" for name in names]


@pytest.mark.parametrize("name", WRITERS)
def test_bombs(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "a.tar":
        pytest.skip("a plain tar does not expand")
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED_BYTES", 1 << 20)
    # no random bytes: all of it packs a thousandfold
    WRITERS[name](tmp_path / name, {f"{i}.py": b"#" * (1 << 20) for i in range(50)})
    (tmp_path / "good.py").write_text("good")
    found, tally = read(tmp_path)
    assert found[-1].text == "good"
    assert len(found) < 50
    assert tally.file_drops == {"archive_bomb": 1}
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 1 << 19)
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED_BYTES", 1 << 30)
    found, tally = read(tmp_path)
    assert [d.text for d in found] == ["good"]
    assert tally.file_drops == {"too_large_member": 50}


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.zst"])
def test_truncated_tar_keeps_its_good_prefix(tmp_path: Path, rng: random.Random, name: str) -> None:
    files = {f"{i:03}.py": rng.randbytes(1500).hex().encode() for i in range(200)}
    WRITERS[name](tmp_path / name, files)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: rng.randrange(int(len(whole) * 0.7), len(whole) - 20480)])
    found, tally = read(tmp_path)
    assert [d.text.encode() for d in found] == list(files.values())[: len(found)]
    assert len(found) > 50
    assert tally.file_drops == {"truncated_file": 1}


@pytest.mark.parametrize("name", WRITERS)
def test_corrupt_archive(tmp_path: Path, rng: random.Random, name: str) -> None:
    content = rng.randbytes(30_000).hex().encode()
    WRITERS[name](tmp_path / name, {"a.py": content, "b.py": b"b"})
    data = bytearray((tmp_path / name).read_bytes())
    if name.endswith("zst"):
        data[0] ^= 0xFF
    else:
        data[100 if name == "a.tar" else len(data) // 3] ^= 0xFF
    (tmp_path / name).write_bytes(data)
    (tmp_path / "z.py").write_text("good")
    found, tally = read(tmp_path)
    if WRITERS[name] is zipped:  # each of its files is packed by itself
        assert [d.text for d in found] == ["b", "good"]
        assert tally.file_drops == {"corrupt_zip_member": 1}
        return
    assert [d.text for d in found] == ["good"]
    assert tally.file_drops == {f"corrupt_{name.rpartition('.')[2]}": 1}


def test_zip_that_lies_about_its_size(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"a.py": b"#" * (200 << 20)})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    at = data.index(b"PK\1\2") + 24
    data[at : at + 4] = (1000).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data)
    (tmp_path / "z.py").write_text("good")
    tracemalloc.start()
    try:
        found, tally = read(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [d.text for d in found] == ["good"]
    assert tally.file_drops == {"corrupt_zip_member": 1}
    assert peak < 30 << 20


def test_encrypted_zip(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"a.py": b"secret"})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    found, tally = read(tmp_path)
    assert not found
    assert tally.file_drops == {"encrypted_member": 1}


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip", "flagged.zip"])
def test_members_whose_names_are_not_utf8(tmp_path: Path, name: str) -> None:
    """Names in Latin-1 cost nothing, also where a zip says that they are UTF-8."""
    sign, latin = ("é", b"\xe9\xe9") if name == "flagged.zip" else ("~", b"\xe9")
    files = {f"caf{sign}.txt": b"one", f"d{sign}r/b.py": b"two = 2\n", "plain.txt": b"three"}
    out = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(out, "w") as archive:
            for path, content in files.items():
                archive.writestr(path, content)
    else:
        with tarfile.open(fileobj=out, mode="w", encoding="latin-1") as tar:
            for path, content in files.items():
                info = tarfile.TarInfo(path.replace("~", "é"))
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    data = out.getvalue().replace(sign.encode(), latin)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found, tally = read(tmp_path)
    assert [d.text for d in found] == ["one", "two = 2\n", "three"]
    assert not tally.faults and not tally.file_drops
