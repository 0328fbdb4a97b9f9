"""Writing to what fsspec knows by a URL.

An object of S3 has its name when it is whole: one that is sent in parts gets it with the last. What
a process that was killed had sent stays in the store without a name, is in nobody's way, and goes
by a rule of the bucket (AbortIncompleteMultipartUpload).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from loopcoder.storage.remote import AT_START, Store


class WritableStore(Store):
    """The objects below a URL, to be written as well."""

    def write(self, name: str, content: bytes, pauses: Sequence[float] = AT_START) -> None:
        """Write a whole object.

        Raises:
            InputError: the store does not allow it, or has no such bucket.
            Unreachable: it cannot be written, however often it is tried.
        """
        self._tried(name, lambda: self._fs.pipe_file(self._path(name), content), pauses, "written")

    def upload(
        self,
        path: Path,
        name: str,
        pauses: Sequence[float] = AT_START,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        """Write a file as an object, in parts where it is long.

        Args:
            moved: Called with every part that has come through.

        Raises:
            FileNotFoundError: there is no such file.
            LoopcoderError: as `write`.
        """
        path.stat()  # for the store's own errors say the same of a bucket
        from fsspec.callbacks import Callback

        to, progress = self._path(name), Callback(hooks={"moved": lambda *_, **__: moved()})

        def once() -> None:
            self._fs.put_file(str(path), to, callback=progress)

        self._tried(name, once, pauses, "written")

    def remove(self, names: Iterable[str], pauses: Sequence[float] = AT_START) -> None:
        """Remove objects; what is not there is no error.

        Raises as `write`.
        """
        for name in names:
            self._tried(name, partial(self._remove, self._path(name)), pauses, "removed")

    def remove_all(self, pauses: Sequence[float] = AT_START) -> None:
        """Remove everything below the URL; raises as `write`."""
        self._tried("", partial(self._remove, self._root, recursive=True), pauses, "removed")

    def _remove(self, path: str, recursive: bool = False) -> None:
        try:
            if recursive:
                self._fs.rm(path, recursive=True)
            else:
                self._fs.rm_file(path)
        except FileNotFoundError:
            return

    def try_out(self) -> None:
        """Write and remove an object, to know of refused credentials and wrong names early.

        Raises as `write`.
        """
        name = f".write-test-{uuid.uuid4().hex}"
        self.write(name, b"loopcoder looks whether it may write here\n")
        self.remove([name])
