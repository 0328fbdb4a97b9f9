"""What is read of a folder and of a pattern; what is not read is counted and named."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.readers import open_source
from data_pipeline.readers.listing import Listing
from data_pipeline.schema import Document, Tally
from loopcoder.config.build import SourceConfig
from loopcoder.errors import InputError


def opened(path: str | Path | list[str], **options: Any) -> Any:
    wanted = path if isinstance(path, list) else str(path)
    return open_source(SourceConfig(kind="files", path=wanted), 0, **options)


def read(path: str | Path | list[str], **options: Any) -> tuple[list[str], Tally]:
    tally = Tally("read")
    found: list[Document] = list(opened(path, **options).documents(tally))
    tally.check()
    return [d.text for d in found], tally


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.py", "sub/b.py", "sub/deep/c.py", ".hidden.py", ".git/x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for name in ("node_modules/m.py", "sub/__pycache__/p.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    return tmp_path


ALL = ["a.py", "sub/b.py", "sub/deep/c.py"]


@pytest.mark.parametrize("pattern", ["", "/*", "/**", "/**/*", "/[a-z]*", "/**/*.py", "/?*"])
def test_patterns_and_folders_agree_on_what_is_skipped(tree: Path, pattern: str) -> None:
    texts, tally = read(f"{tree}{pattern}")
    assert texts == ALL
    assert tally.file_drops["skipped_folder"] == 2


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("node_modules", ["node_modules/m.py"]),  # what is spelt out is meant
        ("node_modules/*", ["node_modules/m.py"]),
        ("*/node_modules", []),
        (".git/*.py", [".git/x.py"]),
        (".hid*", [".hidden.py"]),
        ("*/*.py", ["sub/b.py"]),
        ("s*/**/c.py", ["sub/deep/c.py"]),
        ("*/__pycache__/*", ["sub/__pycache__/p.py"]),
    ],
)
def test_what_a_pattern_spells_out_is_meant(tree: Path, pattern: str, wanted: list[str]) -> None:
    if wanted:
        assert read(tree / pattern)[0] == wanted
    else:
        with pytest.raises(InputError, match="does not exist"):
            read(tree / pattern)


@pytest.mark.parametrize("kind", ["linked_folder", "broken_link", "loop"])
@pytest.mark.parametrize("pattern", ["", "/*", "/**/*.py"])
def test_links(tree: Path, kind: str, pattern: str, tmp_path_factory: Any) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "o.py").write_text("outside")
    (tree / "file.py").symlink_to(outside / "o.py")
    (tree / "again.py").symlink_to(tree / "a.py")
    target = {"linked_folder": outside, "broken_link": tree / "none", "loop": tree / "sub" / "l.py"}
    (tree / "sub" / "l.py").symlink_to(target[kind])
    texts, tally = read(f"{tree}{pattern}")
    # a linked file is read, once, by its own name
    assert sorted(texts) == sorted([*ALL, "outside"])
    reason = "linked_folder" if kind == "linked_folder" else "broken_link"
    assert tally.file_drops[reason] == 1
    end = "/" if kind == "linked_folder" else ""
    assert list(tally.worst()[reason]) == [f"{tree}/sub/l.py{end}"]


def test_a_link_that_a_path_names_is_followed(tree: Path, tmp_path_factory: Any) -> None:
    link = tmp_path_factory.mktemp("links") / "link"
    link.symlink_to(tree)
    assert read(link)[0] == ALL
    assert read(f"{link}/*.py")[0] == ["a.py"]


def test_pipes_sockets_and_devices_are_named_and_not_opened(tree: Path) -> None:
    os.mkfifo(tree / "pipe.py")
    with socket.socket(socket.AF_UNIX) as listening:
        folder = os.open(tree, os.O_RDONLY)  # the address of a socket is short
        listening.bind(f"/proc/self/fd/{folder}/socket.py")
        os.close(folder)
        texts, tally = read(tree)
        (tree / "null.py").symlink_to("/dev/null")
        assert read(tree)[1].file_drops["special_file"] == 3
    assert texts == ALL
    assert set(tally.worst()["special_file"]) == {f"{tree}/pipe.py", f"{tree}/socket.py"}
    with pytest.raises(InputError, match=r"of 0 files .* none is usable \(besides 1 special_file"):
        read(tree / "pipe.py")


def test_a_file_that_becomes_a_pipe_hangs_nothing(tree: Path) -> None:
    source = opened(tree)
    (tree / "a.py").unlink()
    os.mkfifo(tree / "a.py")
    with pytest.raises(InputError, match=r"a\.py was changed after the files were listed"):
        list(source.documents(Tally("read")))


@pytest.fixture
def forbidden(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names that this user may not list, look at or read, even if it is root."""
    names: set[str] = set()
    scandir, stat, access = os.scandir, Path.stat, os.access

    def refuse(path: Any) -> None:
        if {Path(path).name, Path(path).parent.name} & names:
            raise PermissionError(13, "Permission denied", str(path))

    def scan(path: Any) -> Any:
        refuse(path)
        return scandir(path)

    def look(path: Path, **options: Any) -> os.stat_result:
        if path.parent.name in names:
            refuse(path)
        return stat(path, **options)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(Path, "stat", look)
    monkeypatch.setattr(
        os, "access", lambda path, mode, **o: Path(path).name not in names and access(path, mode)
    )
    yield names


@pytest.mark.parametrize("name", ["sub", "deep", "b.py", "a.py"])
@pytest.mark.parametrize("pattern", ["", "/*", "/**/*.py"])
def test_what_may_not_be_read_is_an_error(
    tree: Path, forbidden: set[str], name: str, pattern: str
) -> None:
    forbidden.add(name)
    with pytest.raises(InputError) as error:
        read(f"{tree}{pattern}")
    (problem,) = error.value.problems
    assert f"/{name} (Permission denied)" in problem.fact
    assert "data.build.unreadable=skip" in problem.fix
    texts, tally = read(f"{tree}{pattern}", unreadable="skip")
    assert texts == [text for text in ALL if name not in text and f"{name}/" not in text
                     and not (name == "deep" and "deep" in text)]  # fmt: skip
    assert tally.file_drops["unreadable"] == 1
    assert next(iter(tally.worst()["unreadable"])).endswith(f"/{name}")


@pytest.mark.parametrize(
    "name",
    ["p.parquet", "p.jsonl", "p.jsonl.gz", "p.jsonl.xz", "p.zip", "p.tar", "p.tar.gz", "p.txt.bz2"],
)
def test_a_file_whose_disk_fails_is_not_corrupt(
    tree: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tree / name).write_bytes(b"x")
    source = opened(tree, unreadable="skip")
    strict = opened(tree)
    opening = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == name:
            raise OSError(5, "Input/output error", str(path))
        return opening(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    tally = Tally("read")
    assert [d.text for d in source.documents(tally)] == ALL
    assert tally.file_drops["unreadable"] == 1
    assert not any(reason.startswith("corrupt") for reason in tally.file_drops + tally.drops)
    with pytest.raises(InputError, match=rf"cannot read .*{name}: .*Input/output"):
        list(strict.documents(Tally("read")))


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("pattern", ["", "/*", "/**/*.py"])
def test_another_user_is_told_what_it_may_not_read(tree: Path, pattern: str) -> None:
    (tree / "sub" / "deep").chmod(0o700)
    (tree / "a.py").chmod(0o600)
    (tree / "link.py").symlink_to(tree / "sub" / "deep" / "c.py")
    modes = {p: p.stat().st_mode for p in (tree, *tree.parents) if p != p.parent}
    try:
        for folder, mode in modes.items():
            folder.chmod(mode | 0o055)
        os.seteuid(65534)
        listing = Listing()
        listing.add(Path(f"{tree}{pattern}"))
    finally:
        os.seteuid(0)
        for folder, mode in modes.items():
            folder.chmod(mode)
    assert listing.unreadable == dict.fromkeys(
        [f"{tree}/a.py", f"{tree}/sub/deep", f"{tree}/link.py"], "Permission denied"
    )


@pytest.mark.parametrize(
    ("kind", "when"),
    [
        *(("py", "before"), ("jsonl", "before"), ("zip", "before")),
        ("jsonl", "while"),
        ("zip", "while"),
    ],
)
def test_a_file_that_is_rewritten_is_not_used(tmp_path: Path, kind: str, when: str) -> None:
    import zipfile

    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.py", "one")
            archive.writestr("b.py", "two")
    else:
        path.write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "b.py").write_text("b")
    source = opened(tmp_path)
    reading = source.documents(Tally("read"))
    if when == "while":
        next(reading)
    os.utime(path, ns=(1, 1))  # the same size
    with pytest.raises(InputError, match=rf"a\.{kind} was changed after the files were listed"):
        list(reading)
    tally = Tally("read")
    skipping = opened(tmp_path, unreadable="skip")
    os.utime(path, ns=(2, 2))
    assert [d.text for d in skipping.documents(tally)] == ["b"]
    assert tally.file_drops["unreadable"] + tally.drops["unreadable"] == 1


def test_ends_of_a_name_that_is_too_long_or_odd(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read(f"{tmp_path}/{'a' * 300}")
    with pytest.raises(InputError, match="does not exist"):
        read(f"{tmp_path}/{'a' * 300}*")
    with pytest.raises(InputError, match="does not exist"):
        read(f"{tmp_path}/a\0b")
    (tmp_path / "a\nb.py").write_text("line")
    (tmp_path / "[x]*.py").write_text("literal")
    assert sorted(read(tmp_path)[0]) == ["line", "literal"]
    assert read(tmp_path / "[x]*.py")[0] == ["literal"]


def test_what_is_in_the_way_of_a_source_without_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"besides 1 linked_folder"):
        read(tmp_path / "in")


def test_parts_count_what_is_not_read_once(tree: Path) -> None:
    source = opened(tree)
    tallies = [Tally("read") for _ in source.parts(1)]
    for part, tally in zip(source.parts(1), tallies, strict=True):
        list(part.documents(tally))
    assert len(tallies) == 3
    assert sum(t.file_drops["skipped_folder"] for t in tallies) == 2


def test_a_link_that_may_not_be_read_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links of /proc/PID may be followed, and refuse to say where they lead."""
    (tmp_path / "in").mkdir()
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "in" / "good.txt").write_text("x")
    (tmp_path / "in" / "linked.txt").symlink_to(tmp_path / "a.txt")
    real, is_symlink = os.path.realpath, Path.is_symlink

    def refused(path: Any, **fields: Any) -> str:
        if str(path).endswith("linked.txt"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **fields)

    for path in (tmp_path / "in", tmp_path / "in" / "*.txt", tmp_path / "in" / "linked.txt"):
        listing = Listing()
        with monkeypatch.context() as patched:
            patched.setattr(os.path, "realpath", refused)
            assert listing.add(path)
        assert listing.unreadable == {str(tmp_path / "in" / "linked.txt"): "Permission denied"}
        assert len(listing.files) == (path.name != "linked.txt")

    def unknown(path: Path) -> bool:
        if path.name == "linked.txt":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_symlink(path)

    listing = Listing()
    with monkeypatch.context() as patched:  # a folder whose names may be listed and no more
        patched.setattr(Path, "is_symlink", unknown)
        listing.add(tmp_path / "in")
    assert list(listing.unreadable.values()) == ["Permission denied"]


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="needs the /proc of Linux")
@pytest.mark.parametrize(
    "path", [pytest.param("/proc/self", marks=pytest.mark.data_full), "/proc/self/pagemap"]
)
def test_what_a_system_says_of_itself_is_no_traceback(path: str) -> None:
    with contextlib.suppress(InputError):
        read(path, unreadable="skip")
