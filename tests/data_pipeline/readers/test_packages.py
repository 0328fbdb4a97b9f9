"""Packages of Debian and npm: one tiny package of each by the network, the rest without."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from data_pipeline.readers import fetch as packages
from data_pipeline.readers import open_source
from data_pipeline.readers.fetch import LOCK, fetch_debian, fetch_npm
from data_pipeline.schema import Tally
from loopcoder.config.build import SourceConfig
from loopcoder.errors import InputError


def need(tool: str, *probe: str) -> None:
    """Skip without the tool or its registry."""
    if shutil.which(tool) is None:
        pytest.skip(f"there is no {tool} here")
    try:
        subprocess.run([tool, *probe], capture_output=True, timeout=30, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip(f"{tool} reaches no registry")


def texts(folder: Path) -> dict[str, str]:
    source = open_source(SourceConfig(kind="files", path=str(folder), invalid_utf8="replace"), 0)
    tally = Tally("read")
    found = {Path(d.path).name: d.text for d in source.documents(tally)}
    tally.check()
    return found


@pytest.mark.data_full
@pytest.mark.parametrize("registry", ["debian", "npm"])
def test_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: str) -> None:
    if registry == "debian":
        need("apt-get", "download", "--print-uris", "sl")
        need("dpkg-deb", "--version")
        fetch, name, document = fetch_debian, "sl", "sl.6.txt"
    else:
        need("npm", "view", "left-pad", "version")
        fetch, name, document = fetch_npm, "left-pad@1.3.0", "index.js"
    try:
        (package,) = fetch([name], tmp_path)
    except InputError as e:
        # the probe needs no more than the lists of packages
        if "cannot fetch" in str(e):
            pytest.skip("the registry cannot be reached")
        raise
    assert document in texts(tmp_path / package.folder)
    if registry == "npm":
        assert (package.version, package.licences) == ("1.3.0", ["WTFPL"])
        assert package.sha256.startswith("870c0fe1")
    assert len(package.sha256) == 64
    assert json.loads((tmp_path / LOCK).read_text())[0]["version"] == package.version
    assert not list(tmp_path.glob(".fetch-*"))

    # what the lock file has is there without tool and network
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert fetch([package.name], tmp_path) == [package]
    with pytest.raises(InputError, match=r"there is no (apt-get|npm) here") as error:
        fetch(["another"], tmp_path)
    assert LOCK in error.value.problems[0].fix


@pytest.mark.parametrize("fetch", [fetch_debian, fetch_npm])
@pytest.mark.parametrize("name", ["../x", "-o=Debug", "a b", "", "/etc", "a/../b", "a;b"])
def test_names_that_are_none(tmp_path: Path, fetch: object, name: str) -> None:
    assert callable(fetch)
    with pytest.raises(InputError, match="is no name"):
        fetch([name], tmp_path)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "npm"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'npm error network ENOTFOUND' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/bin:/usr/bin")
    with pytest.raises(InputError, match=r"cannot fetch npm package x: .*ENOTFOUND") as error:
        fetch_npm(["x"], tmp_path / "cache")
    assert "copy the folder" in error.value.problems[0].fix
    assert not (tmp_path / "cache" / LOCK).exists()


def test_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = {"a": "sum1"}
    asked = []

    def get(wanted: str, download: Path, unpacked: Path) -> tuple[str, str, list[str]]:
        asked.append(wanted)
        (unpacked / "a.py").write_text("code")
        (unpacked / "secret.py").symlink_to("/etc/passwd")
        return "1.0", served["a"], ["MIT"]

    monkeypatch.setattr(packages, "_get_npm", get)
    (package,) = fetch_npm(["@s/a"], tmp_path)
    assert package.folder == "npm/@s+a-1.0"
    assert texts(tmp_path / package.folder) == {"a.py": "code"}
    fetch_npm(["@s/a", "@s/a@1.0"], tmp_path)
    assert asked == ["@s/a"]
    # the same version again when the files are gone
    shutil.rmtree(tmp_path / "npm")
    assert fetch_npm(["@s/a"], tmp_path) == [package]
    assert asked == ["@s/a", "@s/a@1.0"]
    shutil.rmtree(tmp_path / "npm")
    served["a"] = "sum2"
    with pytest.raises(InputError, match="the lock file sum1"):
        fetch_npm(["@s/a"], tmp_path)
    (tmp_path / LOCK).write_text("{")
    with pytest.raises(InputError, match="cannot read"):
        fetch_npm(["@s/a"], tmp_path)


def test_packed_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "MAX_DOCUMENT_BYTES", 100)
    monkeypatch.setattr(packages, "_PIECE_BYTES", 50)
    lines = "".join(f"line {i} of a dictionary\n" for i in range(20))
    (tmp_path / "wn.dict.dz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "ls.1.gz").write_bytes(gzip.compress(b".TH ls\n"))
    (tmp_path / "a.py.gz").write_bytes(gzip.compress(b"print()\n"))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"\0binary"))
    (tmp_path / "c.gz").write_bytes(b"no gzip")
    (tmp_path / "long.txt").write_bytes(b"x" * 120)
    for path in sorted(tmp_path.iterdir()):
        packages._unpack_document(path)
    found = texts(tmp_path)
    assert found.pop("ls.1.txt") == ".TH ls\n"
    assert found.pop("a.py") == "print()\n"
    assert [found.pop(f"long.{i:04}.txt") for i in range(3)] == ["x" * 50, "x" * 50, "x" * 20]
    assert "".join(found[name] for name in sorted(found)) == lines
    assert all(t.endswith("\n") for t in found.values()) and len(found) >= 10
    assert {p.name for p in tmp_path.glob("*.gz")} == {"b.gz", "c.gz"}


@pytest.mark.parametrize("ending", ["tar.xz", "tar.bz2", "txz"])
def test_tarballs_of_sources(tmp_path: Path, ending: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "a.c").write_text("int main;\n")
    (inside / "out.c").symlink_to("/etc/passwd")
    (inside / "up").symlink_to("../../..")
    file = tmp_path / f"linux-source-6.1.{ending}"
    with tarfile.open(file, "w:bz2" if ending == "tar.bz2" else "w:xz") as archive:
        archive.add(inside, "linux/drivers")
    whole = file.read_bytes()
    packages._unpack_sources(file, "linux-source-6.1")
    assert not file.exists()
    assert texts(tmp_path / "linux-source-6.1") == {"a.c": "int main;\n"}
    assert not [p for p in (tmp_path / "linux-source-6.1").rglob("*") if p.is_symlink()]

    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be unpacked"):
        packages._unpack_sources(file, "linux-source-6.1")


def test_tarball_that_leads_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sub" / "x.tar.xz"
    file.parent.mkdir()
    with tarfile.open(file, "w:xz") as archive:
        archive.addfile(tarfile.TarInfo("../evil.c"))
    with pytest.raises(InputError, match="outside the destination"):
        packages._unpack_sources(file, "x")
    assert not (tmp_path / "evil.c").exists()
    monkeypatch.setattr(packages, "_MAX_TAR_BYTES", 10)
    with tarfile.open(file, "w:xz") as archive:
        member = tarfile.TarInfo("large.c")
        member.size = 11
        archive.addfile(member, io.BytesIO(b"x" * 11))
    with pytest.raises(InputError, match="it holds more than"):
        packages._unpack_sources(file, "x")


def test_licences(tmp_path: Path) -> None:
    file = tmp_path / "copyright"
    assert packages._debian_licences(file) == []
    file.write_text(
        "Files: *\nLicense: MIT\nFiles: x\nLicense: GPL-2+ or MIT\n\nLicense: MIT\n t\n"
    )
    assert packages._debian_licences(file) == ["MIT", "GPL-2+ or MIT"]
    assert packages._npm_licences({"license": "MIT"}) == ["MIT"]
    assert packages._npm_licences({"license": {"type": "ISC"}}) == ["ISC"]
    assert packages._npm_licences({"licenses": [{"type": "A"}, {"type": "B"}]}) == ["A", "B"]
    assert packages._npm_licences({}) == []
