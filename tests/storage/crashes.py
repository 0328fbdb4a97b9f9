"""A block of code that is ended before each of its file operations in turn, as by a power cut.

After the crash no further operation succeeds, so that `finally` and `except` clauses, which a
killed process does not run, change nothing.
"""

from __future__ import annotations

import builtins
import io
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

_CHANGES = ("rename", "replace", "unlink", "remove", "mkdir", "rmdir", "symlink")


class Crashed(BaseException):
    """Stands for the end of the process."""


class Disk:
    """Counts operations that change files, and ends the process before one of them."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self._left: int | None = None
        """Operations before the crash, -1 after it; None: nothing is counted."""
        self._last = ""
        for name in _CHANGES:
            patch.setattr(os, name, self._counted(name, getattr(os, name)))
        patch.setattr(shutil, "copyfile", self._counted("copyfile", shutil.copyfile))
        patch.setattr(os, "open", self._opened(os.open))
        patch.setattr(io, "open", self._opened(io.open))
        patch.setattr(builtins, "open", self._opened(builtins.open))

    def crashes(self, prepare: Callable[[], Any], work: Callable[[], Any]) -> Iterator[str]:
        """End `work` before its first, second, ... operation, until it comes to its end.

        Where a temporary file is about to take its name, it ends a second time with half of the
        file written.

        Args:
            prepare: Puts the files back, before each time.

        Yields:
            before which operation it ended.
        """
        for number in count():
            for torn in (False, True):
                prepare()
                if not self._ends_before(number, work):
                    return
                if not torn:
                    yield self._last
                elif self._tear():
                    yield f"{self._last} (torn)"

    def _ends_before(self, number: int, work: Callable[[], Any]) -> bool:
        self._left = number
        try:
            work()
        except Crashed:
            return True
        finally:
            self._left = None
        return False

    def _tear(self) -> bool:
        """Cut the temporary file of the last operation in half; False: it was about none."""
        name, _, path = self._last.partition(" ")
        if name not in ("rename", "replace") or not path.endswith(".tmp"):
            return False
        os.truncate(path, Path(path).stat().st_size // 2)
        return True

    def _before(self, operation: str) -> None:
        if self._left is None:
            return
        if self._left > 0:
            self._left -= 1
            return
        if self._left == 0:
            self._last = operation
            self._left = -1
        raise Crashed(operation)

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any, *args: Any, **kwargs: Any) -> Any:
            self._before(f"{name} {os.fspath(path)}")
            return real(path, *args, **kwargs)

        return counted

    def _opened(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, mode: Any = "r", *args: Any, **kwargs: Any) -> Any:
            writes = (
                mode & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                if isinstance(mode, int)
                else set(mode) & set("wax+")
            )
            if writes and not isinstance(path, int):
                self._before(f"open {os.fspath(path)}")
            return real(path, mode, *args, **kwargs)

        return opened
