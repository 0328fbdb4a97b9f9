"""Where files lie: on this machine, or behind a URL of fsspec.

Both, and the members of archives, offer what a reader needs of a `Path`: name, suffix, open("rb"),
read_bytes() and str().
"""

from __future__ import annotations

import re
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


def is_url(path: str) -> bool:
    """Tell whether a path is for fsspec; `file://` is not, see `local_path`."""
    return "://" in path and not path.startswith("file://")


def local_path(path: str) -> Path:
    """Return a path of this machine; `file://` and `~` are understood."""
    if path.startswith("file://"):
        path = unquote(urlsplit(path).path)
    return Path(path).expanduser()


def remote_files(url: str, skipped: list[tuple[str, str]]) -> list[tuple[RemoteFile, int, str]]:
    """List the files under a URL, or those that match it as a pattern: (file, bytes, version).

    Args:
        url: Of the files.
        skipped: Is given (reason, path) of what is left out.

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
            matches = {match: why_unwanted(match[fixed:]) for match in fs.glob(path)}
            skipped += [(why, fs.unstrip_protocol(match)) for match, why in matches.items() if why]
            roots = [match for match, why in matches.items() if not why]
        found = {}
        for root in roots:
            for name, info in fs.find(root, detail=True).items():
                if why := why_unwanted(name[len(root) :]):
                    skipped.append((why, fs.unstrip_protocol(name)))
                else:
                    version = next((info[k] for k in ("ETag", "mtime", "created") if k in info), "")
                    found[fs.unstrip_protocol(name)] = (int(info["size"]), str(version))
    except Exception as e:  # every store has errors of its own
        raise InputError.of(
            f"cannot list {url}: {type(e).__name__}: {e}",
            "fsspec, or the package that it uses for this protocol, says so",
            "pip install s3fs for s3://, credentials in the environment, or a local path",
        ) from e
    return [(RemoteFile(name, fs), *found[name]) for name in sorted(found)]


def why_unwanted(path: str) -> str:
    """Return `hidden` or `skipped_folder` if a part of a path is hidden or a folder of copies, else
    ""."""
    *folders, name = path.strip("/").split("/")
    if any(part.startswith(".") and part not in (".", "") for part in (*folders, name)):
        return "hidden"
    return "skipped_folder" if SKIPPED_FOLDERS.intersection(folders) else ""
