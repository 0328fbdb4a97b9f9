"""Reading from object stores and whatever else fsspec knows by a URL, with further tries."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from loopcoder.errors import InputError, LoopcoderError, Unreachable

PIECE = 1 << 23
"""Bytes of one request; those of a longer range are asked for at once."""
AT_START = (0.5, 2.0)
"""Seconds before each further try while a run only starts: a wrong address is told soon."""
WHILE_TRAINING = (0.5, 2.0, 8.0, 30.0, 60.0)
"""The same where a run would lose its processes: a server that is started anew takes so long."""
_FINAL = (FileNotFoundError, PermissionError)
"""What no further try mends."""
_NO_LOGIN = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"})
"""Errors of botocore, by name."""


def is_url(path: object) -> bool:
    """Tell whether a path is for fsspec; `file://` is a path of this machine."""
    return isinstance(path, str) and "://" in path and not path.startswith("file://")


class Store:
    """The objects below a URL. Credentials and endpoints are those of fsspec: the environment, and
    its configuration files."""

    def __init__(self, url: str, report: Callable[[str], None] | None = None):
        """
        Args:
            report: Receives a line when a read is tried again; None: to stderr.

        Raises:
            InputError: fsspec does not know the protocol, or a package for it is missing.
        """
        self.url = url.rstrip("/")
        self._report = report or _to_stderr
        try:
            import fsspec

            # neither a listing nor an instance of others: what is there now counts
            options = {"use_listings_cache": False, "skip_instance_cache": True}
            self._fs, self._root = fsspec.core.url_to_fs(self.url, **options)
        except (ImportError, ValueError) as error:
            raise InputError.of(
                f"{self.url} cannot be read: {error}",
                "fsspec reads it, with a package for each protocol",
                "pip install s3fs for s3://, gcsfs for gs://, or the path of a local copy",
            ) from error

    def read(self, name: str, pauses: Sequence[float] = AT_START) -> bytes:
        """Return a whole object.

        Raises:
            InputError: it is not there, or may not be read.
            Unreachable: it cannot be read, however often it is tried.
        """
        content: bytes = self._tried(name, lambda: self._fs.cat_file(self._path(name)), pauses)
        return content

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
                "upload it again from the corpus that was built, or build that again",
            ) from error

    def _tried[T](self, name: str, once: Callable[[], T], pauses: Sequence[float]) -> T:
        for pause in (*pauses, None):
            try:
                return once()
            except LoopcoderError:
                raise
            except Exception as error:  # every store has errors of its own
                if pause is None or isinstance(error, _FINAL) or _is_login(error):
                    raise self._error(name, error) from error
                self._report(
                    f"data: {self.url}/{name} cannot be read ({_words(error)}); "
                    f"once more in {pause:g} s"
                )
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _error(self, name: str, error: Exception) -> LoopcoderError:
        where = f"{self.url}/{name}".rstrip("/")
        if isinstance(error, FileNotFoundError):
            return InputError.of(
                f"{where} is not there: {_words(error)}",
                "a finished corpus has it; it was removed, or the URL is another one",
                "data=corpus path=URL of the folder that has manifest.json",
            )
        if isinstance(error, PermissionError) or _is_login(error):
            return InputError.of(
                f"{where} may not be read: {_words(error)}",
                "the store refuses these credentials, or there are none",
                "export AWS_ACCESS_KEY_ID=KEY AWS_SECRET_ACCESS_KEY=SECRET of a user who may list "
                "and read it, for s3://",
            )
        return Unreachable.of(
            f"{where} cannot be read: {_words(error)}",
            "its server does not answer or fails; nothing that was saved is lost",
            "the same command once it can be read, AWS_ENDPOINT_URL=URL for another server of "
            "s3://, or the folder of a copy in its place",
        )


def _is_login(error: Exception) -> bool:
    return type(error).__name__ in _NO_LOGIN


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
