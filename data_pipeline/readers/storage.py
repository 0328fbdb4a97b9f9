"""Where files lie: on this machine, or behind a URL of fsspec.

Both, and the members of archives, offer what a reader needs of a `Path`: name, suffix, open("rb"),
read_bytes() and str().
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, Protocol
from urllib.parse import unquote, urlsplit

from loopcoder.errors import InputError

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
    fs: Any = field(compare=False, repr=False)
    size: int = field(compare=False)
    """Bytes when it was listed."""
    version: str = field(compare=False)
    """What the store said when it was listed, see `_version`."""

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
            info = getattr(file, "details", None) or self.fs.info(self.url)
        except OSError:
            raise
        except Exception as e:  # every store has errors of its own
            raise OSError(f"{type(e).__name__}: {e}") from e
        tag = info.get("ETag")  # times come in other forms from a listing
        if int(info["size"]) != self.size or (tag is not None and tag != self.version):
            file.close()
            raise OSError(errno.ESTALE, f"it had {self.size:,} bytes, now {info['size']:,}")
        return file

    def read_bytes(self) -> bytes:
        with self.open("rb") as file:
            return file.read()


def is_disk_fault(error: Exception) -> bool:
    """Tell what the system says of a file from what a decoder finds wrong with its content.

    The latter has no number, or that of a seek to a place that no file has.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def local_path(path: str) -> Path:
    """Return a path of this machine; `file://` and `~` are understood.

    Raises:
        InputError: what stands between `file://` and the next slash is the name of another host.
    """
    if path.startswith("file://"):
        host, name = urlsplit(path)[1:3]
        if host not in ("", "localhost") or not name:
            raise InputError.of(
                f"{path!r} names no file of this machine",
                "its path begins with a third slash; what stands before that is the name of a host",
                "data.path=file:///FOLDER, or data.path=FOLDER",
            )
        path = unquote(name)
    return Path(path).expanduser()


def remote_files(url: str, left_out: dict[str, str]) -> list[tuple[File, int, str]]:
    """List the files under a URL, or those that match it as a pattern: (file, bytes, version).

    Args:
        url: Of a protocol that fsspec knows.
        left_out: Receives what is not listed, and why.

    Raises:
        InputError: no such protocol, a package is missing, or the store refuses.
    """
    try:
        import fsspec

        fs, path = fsspec.core.url_to_fs(url)
        fixed = len(re.split(r"[*?\[]", path)[0].rpartition("/")[0])
        try:
            fs.info(path)  # which tells a missing file from one that is refused
            roots, fixed = [path], len(path)
        except FileNotFoundError:
            roots = fs.glob(path) if len(path) > fixed else []
        files = {}
        for root in roots:
            for name, info in _below(fs, root).items():
                if reason := why_unwanted(name[fixed:]):
                    left_out[name] = reason
                    continue
                url = fs.unstrip_protocol(name)
                files[url] = RemoteFile(url, fs, int(info["size"]), _version(info))
    except Exception as e:  # every store has errors of its own
        raise InputError.of(
            f"cannot list {url}: {type(e).__name__}: {e}",
            "fsspec, or the package that it uses for this protocol, says so",
            "pip install s3fs for s3://, credentials in the environment, or a local path",
        ) from e
    return [(files[url], files[url].size, files[url].version) for url in sorted(files)]


def _below(fs: Any, root: str) -> dict[str, Any]:
    """Return what a store says of all files below a folder, or of a file."""
    from fsspec import AbstractFileSystem

    if type(fs).find is not AbstractFileSystem.find:
        return dict(fs.find(root, detail=True))  # it lists all at once
    # that of fsspec leaves out what it cannot list
    info = fs.info(root)
    if info["type"] != "directory":
        return {root: info}
    found, folders = {}, [root]
    while folders:
        for entry in fs.ls(folders.pop(), detail=True):
            if entry["type"] == "directory":
                folders.append(entry["name"])
            else:
                found[entry["name"]] = entry
    return found


def _version(info: Mapping[str, Any]) -> str:
    """Return what a store says of a file that changes with its content."""
    return str(next((info[key] for key in ("ETag", "mtime", "created") if key in info), ""))


def why_unwanted(path: str) -> str | None:
    """Return why a path is left out, if a part of it is hidden or a folder of copies."""
    *folders, name = path.strip("/").split("/")
    if any(part.startswith(".") and part != "." for part in (*folders, name)):
        return "hidden"
    return "skipped_folder" if SKIPPED_FOLDERS.intersection(folders) else None
