"""Where files lie: on this machine, behind a URL of fsspec, or inside an archive.

All offer what a reader needs of a `Path`: name, suffix, open("rb"), read_bytes() and str().
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, Protocol
from urllib.parse import unquote, urlsplit

from data_pipeline.readers.jsonl import CorruptFileError, decompressed
from data_pipeline.schema import Tally
from loopcoder.errors import InputError

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".zip", ".whl")
MAX_MEMBER_BYTES = 64 << 20
"""Larger files of an archive are left out; a reader holds one in memory."""
MAX_EXPANSION = 100
"""Bytes that one byte of an archive may become; source code gives 3 to 20."""
_ALWAYS_ALLOWED_BYTES = 64 << 20
SKIPPED_FOLDERS = {"__pycache__", "node_modules"}


class File(Protocol):
    """A file that can be read more than once."""

    @property
    def name(self) -> str: ...

    @property
    def suffix(self) -> str: ...

    def open(self, mode: Literal["rb"]) -> IO[bytes]: ...

    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL."""

    url: str
    fs: Any = field(compare=False)

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        try:
            file: IO[bytes] = self.fs.open(self.url, mode)
        except OSError:
            raise
        except Exception as e:  # every store has errors of its own
            raise OSError(f"{type(e).__name__}: {e}") from e
        return file

    def read_bytes(self) -> bytes:
        with self.open("rb") as file:
            return file.read()


@dataclass(frozen=True)
class Member:
    """A file of an archive, already in memory."""

    archive: str
    path: str
    content: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"{self.archive}!{self.path}"

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        return io.BytesIO(self.content)

    def read_bytes(self) -> bytes:
        return self.content


def is_url(path: str) -> bool:
    """Tell whether a path is for fsspec; `file://` is not, see `local_path`."""
    return "://" in path and not path.startswith("file://")


def local_path(path: str) -> Path:
    """Return a path of this machine; `file://` and `~` are understood."""
    if path.startswith("file://"):
        path = unquote(urlsplit(path).path)
    return Path(path).expanduser()


def remote_files(url: str) -> list[tuple[RemoteFile, int, str]]:
    """List the files under a URL, or those that match it as a pattern: (file, bytes, version).

    Raises:
        InputError: no such protocol, a package is missing, or the store refuses.
    """
    try:
        import fsspec

        fs, path = fsspec.core.url_to_fs(url)
        if fs.exists(path):
            roots = [path]
        else:
            fixed = len(re.split(r"[*?\[]", path)[0].rpartition("/")[0])
            roots = [match for match in fs.glob(path) if is_wanted(match[fixed:])]
        found = {}
        for root in roots:
            for name, info in fs.find(root, detail=True).items():
                if is_wanted(name[len(root) :]):
                    version = next((info[k] for k in ("ETag", "mtime", "created") if k in info), "")
                    found[fs.unstrip_protocol(name)] = (int(info["size"]), str(version))
    except Exception as e:  # every store has errors of its own
        raise InputError.of(
            f"cannot list {url}: {type(e).__name__}: {e}",
            "fsspec, or the package that it uses for this protocol, says so",
            "pip install s3fs for s3://, credentials in the environment, or a local path",
        ) from e
    return [(RemoteFile(name, fs), *found[name]) for name in sorted(found)]


def is_wanted(path: str) -> bool:
    """Tell whether no part of a path is hidden or a folder of copies."""
    *folders, name = path.strip("/").split("/")
    hidden = any(part.startswith(".") and part not in (".", "") for part in (*folders, name))
    return not hidden and not SKIPPED_FOLDERS.intersection(folders)


def members(file: File, size: int, tally: Tally) -> Iterator[Member]:
    """Yield the regular files of an archive without unpacking it to disk.

    Left out and counted as files: paths that lead out of the archive (`unsafe_member`), a second
    file of a name (`duplicate_member`), encrypted and too large ones. An archive that expands to
    more than 100 times its size is left at that point (`archive_bomb`); a damaged one yields
    nothing if it is a packed tar, else what comes before the damage. One that is cut off yields its
    good prefix.
    """
    allowed = MAX_EXPANSION * size + _ALWAYS_ALLOWED_BYTES
    packer = file.name.rpartition(".")[2].lower()
    seen: set[str] = set()
    try:
        read = _zip_members if packer in ("zip", "whl") else _tar_members
        for path, content in read(file, allowed, tally):
            if path in seen:
                tally.file_drops["duplicate_member"] += 1
            elif content is not None:
                yield Member(str(file), path, content)
            seen.add(path)
    except _BombError:
        tally.file_drops["archive_bomb"] += 1
    except (CorruptFileError, tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError):
        tally.file_drops[f"corrupt_{packer}"] += 1


class _BombError(Exception):
    """An archive expands to more than it may."""


def _is_allowed(path: str, num_bytes: int, tally: Tally) -> bool:
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if path.startswith(("/", "\\")) or ".." in parts or ":" in (parts[0] if parts else ""):
        tally.file_drops["unsafe_member"] += 1
        return False
    if not is_wanted(path):
        return False
    if num_bytes > MAX_MEMBER_BYTES:
        tally.file_drops["too_large_member"] += 1
        return False
    return True


def _tar_members(file: File, allowed: int, tally: Tally) -> Iterator[tuple[str, bytes | None]]:
    if not file.name.lower().endswith(".tar"):
        total = 0
        # a pass of its own: nothing of a corrupt file may get through
        for piece in decompressed(file):
            total += len(piece)
            if total > allowed:
                raise _BombError
    stream = _Stream(decompressed(file, tally), allowed)
    was_truncated = tally.notes["truncated_file"]
    is_cut = False
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if member.isreg() and _is_allowed(member.name, member.size, tally):
                    inner = archive.extractfile(member)
                    assert inner is not None
                    content = inner.read()
                    if len(content) < member.size:
                        raise tarfile.ReadError("unexpected end of data")
                    yield member.name.removeprefix("./"), content
    except tarfile.ReadError as e:
        is_cut = stream.is_done and "unexpected end" in str(e)
        if not is_cut:
            raise
    # a tar ends with blocks of zeros
    if is_cut or (stream.is_done and stream.tail.strip(b"\0")):
        # a packed one was counted by its decompressor
        tally.notes["truncated_file"] = was_truncated + 1


def _zip_members(file: File, allowed: int, tally: Tally) -> Iterator[tuple[str, bytes | None]]:
    total = 0
    with file.open("rb") as stored, zipfile.ZipFile(stored) as archive:
        for info in archive.infolist():
            if info.is_dir() or not _is_allowed(info.filename, info.file_size, tally):
                continue
            if info.flag_bits & 1:
                tally.file_drops["encrypted_member"] += 1
                continue
            total += info.file_size
            if total > allowed:
                raise _BombError
            try:
                with archive.open(info) as packed:
                    # a size of its own: read() unpacks what is there, not what the directory says
                    content = packed.read(info.file_size)
            except (NotImplementedError, zlib.error, lzma.LZMAError, OSError) as e:
                raise zipfile.BadZipFile(str(e)) from e
            yield info.filename, content


class _Stream(io.RawIOBase):
    """Pieces as a file; raises when there are more bytes than allowed."""

    def __init__(self, pieces: Iterator[bytes], allowed: int) -> None:
        self._pieces = pieces
        self._allowed = allowed
        self._rest = b""
        self.is_done = False
        self.tail = b""
        """The last 512 bytes read so far."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts = [self._rest]
        wanted = size if size >= 0 else self._allowed + 1
        have = len(self._rest)
        while have < wanted:
            piece = next(self._pieces, None)
            if piece is None:
                self.is_done = True
                break
            self._allowed -= len(piece)
            if self._allowed < 0:
                raise _BombError
            self.tail = (self.tail + piece[-512:])[-512:]
            parts.append(piece)
            have += len(piece)
        data = b"".join(parts)
        self._rest = data[wanted:]
        return data[:wanted]
