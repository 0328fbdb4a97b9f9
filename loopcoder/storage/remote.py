"""Reading from object stores and whatever else fsspec knows by a URL, with further tries."""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self, TypeGuard

import xxhash

from loopcoder.errors import InputError, LoopcoderError, Unreachable
from loopcoder.storage.secrets import masked

PIECE = 1 << 23
"""Bytes of one request; those of a longer range are asked for at once."""
AT_START = (0.5, 2.0)
"""Seconds before each further try while a run only starts: a wrong address is told soon."""
WHILE_TRAINING = (0.5, 2.0, 8.0, 30.0, 60.0)
"""The same where a run would lose its processes: a server that is started anew takes so long."""
_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, FileExistsError)
"""What no further try mends."""
_STRETCH = 8 * PIECE
"""Bytes of a download that are in memory at once."""
_LOCAL = ("file://", "local://")
"""Stores that are folders of this machine."""
_NO_LOGIN = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"})
"""Errors of botocore, by name."""


def is_url(path: object) -> bool:
    """Tell whether a path is for fsspec; `file://` is a path of this machine."""
    return is_stored(path) and not path.startswith("file://")


def is_stored(place: object) -> TypeGuard[str]:
    """Tell whether a place is for fsspec, `file://` included."""
    return isinstance(place, str) and "://" in place


@dataclass(frozen=True)
class Words:
    """What the errors of a store say of what is in it."""

    about: str
    """First word of a line on a further try."""
    missing: tuple[str, str]
    """Why an object should be there, and what mends that it is not."""
    copy: str
    """What helps instead of a server that does not answer."""
    again: str
    """What mends an object that was cut off."""
    may: str = "list and read it"
    """What a user needs to be allowed to do."""


_OF_A_CORPUS = Words(
    "data",
    (
        "a finished corpus has it; it was removed, or the URL is another one",
        "data=corpus path=URL of the folder that has manifest.json",
    ),
    "the folder of a copy in its place",
    "upload it again from the corpus that was built, or build that again",
)


class Store:
    """The objects below a URL. Credentials and endpoints are those of fsspec: the environment, and
    its configuration files."""

    def __init__(
        self,
        url: str,
        report: Callable[[str], None] | None = None,
        words: Words = _OF_A_CORPUS,
    ):
        """
        Args:
            report: Receives a line when something is tried again; None: to stderr.
            words: Of errors.

        Raises:
            InputError: fsspec does not know the protocol, a package for it is missing, or the URL
                has a password.
        """
        if (shown := masked(url, ())) != url:
            raise InputError.of(
                f"{shown} has a password",
                "its server's messages, which are printed, may have it too",
                "the URL without it; fsspec reads keys from ~/.config/fsspec/*.json and "
                "FSSPEC_<PROTOCOL>_<OPTION> (docs/data.md)",
            )
        self.url = url.rstrip("/")
        self._report, self._words = report or _to_stderr, words
        try:
            import fsspec

            # neither a listing nor an instance of others: what is there now counts
            options = {"use_listings_cache": False, "skip_instance_cache": True}
            if self.url.startswith(_LOCAL):
                options["auto_mkdir"] = True
            self._fs, self._root = fsspec.core.url_to_fs(self.url, **options)
        except (ImportError, ValueError) as error:
            raise InputError.of(
                f"{self.url} cannot be read: {error}",
                "fsspec reads it, with a package for each protocol",
                "pip install s3fs for s3://, gcsfs for gs://, or the path of a local copy",
            ) from error

    def below(self, folder: str) -> Self:
        """Return the objects of a folder, by the same connection."""
        inner = copy.copy(self)
        inner.url, inner._root = f"{self.url}/{folder}", self._path(folder)
        return inner

    def read(self, name: str, pauses: Sequence[float] = AT_START) -> bytes:
        """Return a whole object.

        Raises:
            InputError: it is not there, or may not be read.
            Unreachable: it cannot be read, however often it is tried.
        """
        content: bytes = self._tried(name, lambda: self._fs.cat_file(self._path(name)), pauses)
        return content

    def found(self, name: str, pauses: Sequence[float] = AT_START) -> bytes | None:
        """Return a whole object, None if there is none; raises as `read`."""

        def once() -> bytes | None:
            try:
                content: bytes = self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return content

        return self._tried(name, once, pauses)

    def download(
        self, name: str, path: Path, size: int, pauses: Sequence[float] = WHILE_TRAINING
    ) -> str:
        """Write an object of so many bytes to a file; return the xxh3-128 of what came.

        Raises as `pieces`.
        """
        with open(path, "wb") as file:
            return self.digest(name, size, pauses, file.write)

    def digest(
        self,
        name: str,
        size: int,
        pauses: Sequence[float] = WHILE_TRAINING,
        write: Callable[[bytes], object] = lambda _: None,
    ) -> str:
        """Return the xxh3-128 of an object of so many bytes, in bounded memory.

        Args:
            write: Receives the bytes as they come.

        Raises as `pieces`.
        """
        digest = xxhash.xxh3_128()
        for start in range(0, size, _STRETCH):
            for piece in self.pieces(name, start, min(_STRETCH, size - start), pauses):
                digest.update(piece)
                write(piece)
        return digest.hexdigest()

    def names(self, pauses: Sequence[float] = AT_START) -> list[str]:
        """Return what is directly below the URL, folders too, sorted; [] where nothing is.

        Raises:
            InputError: it may not be listed.
            Unreachable: it cannot be listed, however often it is tried.
        """

        def once() -> list[str]:
            try:
                found = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
            return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

        return self._tried("", once, pauses)

    def pieces(
        self, name: str, start: int, size: int, pauses: Sequence[float] = WHILE_TRAINING
    ) -> list[bytes]:
        """Return the bytes [start, start + size) of an object in pieces of at most `PIECE`.

        Raises:
            InputError: they are not there, or may not be read.
            Unreachable: they cannot be read, however often it is tried.
        """
        starts = list(range(start, start + size, PIECE))
        ends = [min(at + PIECE, start + size) for at in starts]

        def once() -> list[bytes]:
            paths = [self._path(name)] * len(starts)
            try:
                found = self._fs.cat_ranges(paths, starts, ends, on_error="return")
                for piece in found:
                    if isinstance(piece, Exception):
                        raise piece
            except Exception as error:
                self._refuse_shorter(name, start + size, error)
                raise
            if sum(map(len, found)) != size:
                self._refuse_shorter(name, start + size, None)
                raise OSError(f"{sum(map(len, found)):,} of {size:,} bytes came")
            return list(found)

        return self._tried(name, once, pauses)

    def sizes(self, pauses: Sequence[float] = AT_START) -> dict[str, int]:
        """Return the bytes of every object, by its name below the URL.

        Raises:
            InputError: they may not be listed.
            Unreachable: they cannot be listed, however often it is tried.
        """

        def once() -> dict[str, int]:
            found = self._fs.find(self._root, detail=True)
            below = len(self._root.rstrip("/")) + 1
            return {path[below:]: int(info["size"]) for path, info in found.items()}

        return self._tried("", once, pauses)

    def written(self, name: str, pauses: Sequence[float] = AT_START) -> datetime | None:
        """Return when an object was written, in this machine's time zone; None: it is not there, or
        its store does not say.

        Raises:
            InputError: it may not be read.
            Unreachable: it cannot be read, however often it is tried.
        """

        def once() -> datetime | None:
            try:
                found: datetime = self._fs.modified(self._path(name))
            except (FileNotFoundError, NotImplementedError):
                return None
            return found.astimezone()

        return self._tried(name, once, pauses)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _refuse_shorter(self, name: str, wanted: int, error: Exception | None) -> None:
        """Raise InputError if an object ends before a place where there should be more of it."""
        if isinstance(error, _FINAL):
            return
        try:
            there = int(self._fs.info(self._path(name))["size"])
        except Exception:  # the server does not answer this either
            return
        if there < wanted:
            raise InputError.of(
                f"{self.url}/{name} ends after {there:,} bytes, {wanted:,} were written and more",
                "it was cut off, or replaced by another object",
                self._words.again,
            ) from error

    def _tried[T](
        self, name: str, once: Callable[[], T], pauses: Sequence[float], done: str = "read"
    ) -> T:
        for pause in (*pauses, None):
            try:
                return once()
            except LoopcoderError:
                raise
            except Exception as error:  # every store has errors of its own
                if pause is None or isinstance(error, _FINAL) or _is_login(error):
                    raise self._error(name, error, done) from error
                self._report(
                    f"{self._words.about}: {self.url}/{name} cannot be {done} ({_words(error)}); "
                    f"once more in {pause:g} s"
                )
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _error(self, name: str, error: Exception, done: str) -> LoopcoderError:
        where = f"{self.url}/{name}".rstrip("/")
        if isinstance(error, NotADirectoryError | FileExistsError):
            return InputError.of(
                f"{where} cannot be {done}: {_words(error)}",
                "a part of its path is a file",
                "the URL of a folder, or of one that can be made",
            )
        if self.url.startswith(_LOCAL) and not (
            isinstance(error, FileNotFoundError) and done == "read"
        ):
            return self._error_of_a_disk(where, error, done)
        if isinstance(error, FileNotFoundError) and done != "read":
            return InputError.of(
                f"{where} cannot be {done}: {_words(error)}",
                "a store makes no bucket by itself",
                "make the bucket, or the URL of one that is there",
            )
        if isinstance(error, FileNotFoundError):
            return InputError.of(f"{where} is not there: {_words(error)}", *self._words.missing)
        if isinstance(error, PermissionError) or _is_login(error):
            return InputError.of(
                f"{where} may not be {done}: {_words(error)}",
                "the store refuses these credentials, or there are none",
                "export AWS_ACCESS_KEY_ID=KEY AWS_SECRET_ACCESS_KEY=SECRET of a user who may "
                f"{self._words.may}, for s3://",
            )
        return Unreachable.of(
            f"{where} cannot be {done}: {_words(error)}",
            "its server does not answer or fails; nothing that was saved is lost",
            f"the same command once it can be {done}, AWS_ENDPOINT_URL=URL for another server of "
            f"s3://, or {self._words.copy}",
        )

    def _error_of_a_disk(self, where: str, error: Exception, done: str) -> LoopcoderError:
        if isinstance(error, FileNotFoundError):
            return InputError.of(
                f"{where} cannot be {done}: {_words(error)}",
                "a folder or link of its path leads nowhere",
                "make that folder, or the URL of one that is there",
            )
        if isinstance(error, PermissionError):
            return InputError.of(
                f"{where} may not be {done}: {_words(error)}",
                f"user {os.geteuid()} may not do that in this folder",
                f"a folder where that user may {self._words.may}, or chmod this one",
            )
        return Unreachable.of(
            f"{where} cannot be {done}: {_words(error)}",
            "its disk is full, fails, or is not mounted; nothing that was saved is lost",
            f"the same command once it can be {done}, or {self._words.copy}",
        )


def _is_login(error: Exception) -> bool:
    return type(error).__name__ in _NO_LOGIN


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
