"""Files behind http and https: single ones, those that an index of links names, and patterns.

A file is copied to a temporary one before it is read, so that a connection that is lost costs
another try and never half a document, and so that parquet and zip can be read from their ends.

fsspec's file system for http (2026.9.0) is not used, since it gives up a lost connection and a busy
server at once, lists links that lead out of the folder or only sort it, asks proxies of the
environment only if told to, and needs aiohttp, which `pip install loopcoder` does not bring.
"""

from __future__ import annotations

import errno
import fnmatch
import http.client
import re
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import PurePosixPath
from typing import IO, Any, Literal
from urllib.parse import unquote, urljoin, urlsplit

from data_pipeline.readers.storage import File, why_unwanted
from loopcoder.errors import InputError

_TRIES = 3
_PAUSE_S = 1.0
_TIMEOUT_S = 60.0
_AT_ONCE = 8
_CHUNK = 1 << 18
_NOT_HEAD = (400, 403, 405, 501)
"""What servers say that do not know HEAD, or did not sign it."""
_GONE = (404, 410)


@dataclass
class _Copies:
    """The last file that was read, on this machine: readers open a file twice."""

    url: str = ""
    copy: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": "", "copy": None}  # the copy is of the process that made it

    def open(self, file: HttpFile) -> IO[bytes]:
        if self.url != file.url:
            self.copy = tempfile.NamedTemporaryFile(prefix="loopcoder-")  # noqa: SIM115
            self.url = ""
            _download(file, self.copy)
            self.url = file.url
        return open(self.copy.name, "rb")


@dataclass(frozen=True)
class HttpFile:
    """A file behind a URL."""

    url: str
    name: str
    size: int = field(compare=False)
    """Bytes when it was listed; 0: the server does not say."""
    version: str = field(compare=False)
    """Entity tag or date when it was listed."""
    copies: _Copies = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.url

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        return self.copies.open(self)

    def read_bytes(self) -> bytes:
        with self.open("rb") as file:
            return file.read()


def http_files(
    url: str, left_out: dict[str, str], unreadable: dict[str, str]
) -> list[tuple[File, int, str]]:
    """List a file, what an index of links names, or what matches a pattern; see `remote_files`.

    A folder is what answers with HTML under a URL that ends with /, as web servers list them. Its
    links are followed downwards, never to its parent or to another host.

    Raises:
        InputError: the server cannot be reached or refuses.
    """
    magic = re.search(r"[*\[]", url)  # a ? begins the query of a URL
    start = url[: url.rindex("/", 0, magic.start()) + 1] if magic else url
    pattern = urlsplit(url).path.split("/")[urlsplit(start).path.count("/") :] if magic else []
    try:
        root = _look(start)
        if root is None:
            return []
        seen = [root]
        if root.is_folder:
            seen = list(_crawl(root.url, pattern, left_out, unreadable))
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise InputError.of(
            f"cannot list {url}: {type(e).__name__}: {e}",
            "the server does not answer, or refuses",
            f"look what it says (curl -IL '{start}'), or download the files and give their folder",
        ) from e
    copies = _Copies()
    files = {a.url: HttpFile(a.url, a.name, a.size, a.version, copies) for a in seen}
    return [(files[u], files[u].size, files[u].version) for u in sorted(files)]


@dataclass(frozen=True)
class _Answer:
    """What a server says of a URL."""

    url: str
    """Without the redirections of files, as the user knows it; those of folders are followed."""
    name: str
    size: int
    version: str
    is_folder: bool


def _request(url: str, method: str) -> Any:
    # a coding of the transfer would hide the size, and with it a lost connection
    headers = {"Accept-Encoding": "identity", "User-Agent": "loopcoder"}
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()  # it is an answer too, and holds the connection
        raise


def _look(url: str) -> _Answer | None:
    """Ask for a file's size and version; None: there is no such file."""
    for method in ("HEAD", "GET"):
        try:
            with _request(url, method) as answer:
                final, headers = answer.url, answer.headers
        except urllib.error.HTTPError as error:
            if error.code in _GONE:
                return None
            if method == "HEAD" and error.code in _NOT_HEAD:
                continue
            raise
        path = urlsplit(final).path
        is_folder = headers.get_content_type() == "text/html" and (not path or path.endswith("/"))
        own, redirected = (_name(u) for u in (url, final))
        return _Answer(
            url=(final if path.endswith("/") else final + "/") if is_folder else url,
            name=own if PurePosixPath(own).suffix else redirected,
            size=_length(headers),
            version=_version(headers),
            is_folder=is_folder,
        )
    return None


def _name(url: str) -> str:
    return unquote(urlsplit(url).path).rpartition("/")[2]


class _Links(HTMLParser):
    """The links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for key, value in attrs if key == "href" and value]


def _crawl(
    root: str, pattern: Sequence[str], left_out: dict[str, str], unreadable: dict[str, str]
) -> Iterator[_Answer]:
    """Yield the files below a folder that match a pattern, all of them if it is empty."""
    folders, known = [root], {root}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while folders:
            folder = folders.pop()
            wanted = []
            try:
                links = _links_of(folder)
            except (OSError, http.client.HTTPException) as error:
                if folder == root:
                    raise
                unreadable[folder] = str(error)
                continue
            for link in links:
                parts = unquote(link[len(root) :]).strip("/").split("/")
                if link in known or not _may_fit(parts, pattern):
                    continue
                known.add(link)
                if reason := why_unwanted("/".join([*parts, *([""] * link.endswith("/"))])):
                    left_out[link] = reason
                elif link.endswith("/"):
                    folders.append(link)
                else:
                    wanted.append((link, parts))
            looks = pool.map(lambda item: _tried(item[0]), wanted)
            for (link, parts), answer in zip(wanted, looks, strict=True):
                if isinstance(answer, Exception) or answer is None:
                    unreadable[link] = str(answer or "404 Not Found")
                elif answer.is_folder and answer.url.startswith(root) and answer.url not in known:
                    known.add(answer.url)
                    folders.append(answer.url)
                elif not answer.is_folder and _fits(parts, pattern):
                    yield answer


def _tried(url: str) -> _Answer | Exception | None:
    try:
        return _look(url)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return error


def _links_of(folder: str) -> list[str]:
    """Return the links of an index that lead further down, without queries (they sort it)."""
    with _request(folder, "GET") as answer:
        base = answer.url
        page = b"".join(_decoded(answer, folder)).decode(errors="replace")
    links = _Links()
    links.feed(page)
    found = (re.split(r"[?#]", urljoin(base, link))[0] for link in links.found)
    return sorted({link for link in found if link.startswith(folder) and link != folder})


def _may_fit(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tell whether a name, or one below it, may match a pattern."""
    if not parts or not pattern or pattern[0] == "**":
        return True
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _may_fit(parts[1:], pattern[1:])


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tell whether a name, or that of a folder above it, matches a pattern."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or (bool(parts) and _fits(parts[1:], pattern))
    return (
        bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
    )


def _download(file: HttpFile, copy: IO[bytes]) -> None:
    """Copy a file.

    Raises:
        OSError: it cannot be had, or is another one than was listed.
    """
    for left in reversed(range(_TRIES)):
        copy.seek(0)
        copy.truncate()
        try:
            with _request(file.url, "GET") as answer:
                _check_same(file, answer.headers)
                for piece in _decoded(answer, file.name):
                    copy.write(piece)
            copy.flush()
        except (OSError, http.client.HTTPException, zlib.error, ValueError) as error:
            code = getattr(error, "code", 500)
            if not left or (code < 500 and code != 429) or isinstance(error, _ChangedError):
                if isinstance(error, OSError):
                    raise
                raise OSError(errno.EIO, f"{type(error).__name__}: {error}", file.url) from error
            time.sleep(_PAUSE_S)
        else:
            return


class _ChangedError(OSError):
    """A file is not the one that was listed."""


def _check_same(file: HttpFile, headers: Any) -> None:
    size, version = _length(headers), _version(headers)
    # the coding of a transfer changes the length that is told
    is_other_size = size and file.size and size != file.size and not headers["Content-Encoding"]
    is_other_version = version and file.version and version != file.version
    if is_other_size or is_other_version:
        raise _ChangedError(
            errno.ESTALE, f"it had {file.size:,} bytes ({file.version}), now {size:,} ({version})"
        )


def _length(headers: Any) -> int:
    return int(headers.get("Content-Length") or 0)


def _version(headers: Any) -> str:
    """Return the entity tag, without what servers add to it when they pack, or the date."""
    tag = (headers.get("ETag") or "").removeprefix("W/").replace("-gzip", "")
    return tag or headers.get("Last-Modified") or ""


def _decoded(answer: Any, name: str) -> Iterator[bytes]:
    """Yield what a server sends, without the coding of the transfer that it may have added.

    Raises:
        OSError: the connection was lost, or the coding is unknown.
    """
    coding = (answer.headers.get("Content-Encoding") or "identity").lower()
    # many servers say so of files that are packed themselves
    is_packed = coding in ("gzip", "x-gzip") and not name.lower().endswith((".gz", ".tgz"))
    if coding not in ("identity", "gzip", "x-gzip"):
        raise OSError(errno.EPROTO, f"the server sends Content-Encoding {coding}")
    unpack = zlib.decompressobj(wbits=31) if is_packed else None
    received = 0
    while piece := answer.read(_CHUNK):
        received += len(piece)
        yield unpack.decompress(piece) if unpack else piece
    announced = answer.headers.get("Content-Length")
    if (announced is not None and received != int(announced)) or (unpack and not unpack.eof):
        raise OSError(errno.ECONNRESET, f"the connection was lost after {received:,} bytes")
