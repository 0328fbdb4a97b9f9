"""Calls of a store that end in time.

A client of torch's store waits for ever for the answer of a machine that is gone without a word,
whatever its timeout is, and holds up the thread that asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class StoreSilent(Exception):
    """The store has not answered yet; it may come back."""


class PatientStore:
    """A store of torch, asked in a thread of its own: one call after the other, so that a late
    answer is not taken for that of the next call. For one caller at a time."""

    def __init__(self, store: Any, patience_s: float):
        """
        Args:
            store: It is used by nobody else.
            patience_s: How long a call may take.
        """
        self._store, self._patience_s = store, patience_s
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        self._unanswered: _Call | None = None
        self._answered = time.monotonic()
        # A daemon: the interpreter does not wait for it at its end.
        threading.Thread(target=self._serve, name="loopcoder-store", daemon=True).start()

    def set(self, key: str, value: str) -> None:
        """Set a key; like the others it raises StoreSilent, or what the store raises."""
        self._ask(lambda: self._store.set(key, value))

    def get(self, key: str) -> bytes:
        """Return what is there under a key that has been set."""
        value: bytes = self._ask(lambda: self._store.get(key))
        return value

    def check(self, keys: list[str]) -> bool:
        """Say whether all keys have been set."""
        return bool(self._ask(lambda: self._store.check(keys)))

    @property
    def silent_s(self) -> float:
        """For how long it has not answered."""
        return time.monotonic() - self._answered

    def _ask(self, what: Callable[[], Any]) -> Any:
        if self._unanswered is not None and not self._unanswered.done.is_set():
            raise StoreSilent
        self._unanswered = call = _Call(what)
        self._calls.put(call)
        if not call.done.wait(self._patience_s):
            raise StoreSilent
        self._answered = time.monotonic()
        if call.error is not None:
            raise call.error
        return call.value

    def _serve(self) -> None:
        while True:
            self._calls.get().answer()


class _Call:
    def __init__(self, what: Callable[[], Any]):
        self._what = what
        self.done = threading.Event()
        self.value: Any = None
        self.error: Exception | None = None

    def answer(self) -> None:
        try:
            self.value = self._what()
        except Exception as error:
            self.error = error
        self.done.set()
