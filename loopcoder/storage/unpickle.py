"""Read a pickle that may come from a stranger: it makes objects of known classes and nothing else.

A pickle is a program: it imports what it names and calls that
(docs.python.org/3/library/pickle.html, "Restricting Globals"). Here it gets what the caller knows:
classes, whose objects it fills but does not construct, and what it may call.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any


class RefusedPickle(pickle.UnpicklingError):
    """A pickle wants something that is not known."""


def unpickle(
    data: bytes, classes: Callable[[str, str], bool], makers: Mapping[str, Callable[..., Any]]
) -> Any:
    """Return the object that a pickle of protocol 2 or later makes.

    Args:
        data: The pickle.
        classes: Says of a module and a name in it whether it may have objects of that.
        makers: What it may call, by `module.name` as the pickle has it.

    Raises:
        RefusedPickle: naming what it wants besides, of which nothing was run.
        Exception: it is damaged, or made by another version of a class; of many types, as pickle
            has them.
    """
    return _Unpickler(io.BytesIO(data), classes, makers).load()


# That of Python and not that of C, which does not let single instructions be handled otherwise.
_InPython: Any = pickle._Unpickler


class _Unpickler(_InPython):  # type: ignore[misc] # typeshed knows half of its methods
    def __init__(
        self,
        file: io.BytesIO,
        classes: Callable[[str, str], bool],
        makers: Mapping[str, Callable[..., Any]],
    ):
        super().__init__(file)
        self._classes, self._makers = classes, makers

    def find_class(self, module: str, name: str) -> Any:
        if maker := self._makers.get(f"{module}.{name}"):
            return maker
        # a dot would lead from what is known to what that imports
        if "." in name or not self._classes(module, name):
            raise RefusedPickle(f"{module}.{name}")
        return super().find_class(module, name)

    def load_reduce(self) -> None:
        called = self.stack[-2]
        if not any(called is maker for maker in self._makers.values()):
            raise RefusedPickle(f"a call of {called!r}")
        super().load_reduce()

    def load_build(self) -> None:
        changed = self.stack[-2]
        if isinstance(changed, type):  # a class is everybody's
            raise RefusedPickle(f"a change of {changed!r}")
        super().load_build()

    def _instantiate(self, klass: Any, args: Any) -> None:
        raise RefusedPickle(f"a call of {klass!r}")  # as pickles of protocol 0 and 1 do

    dispatch = _InPython.dispatch | {
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
    }
