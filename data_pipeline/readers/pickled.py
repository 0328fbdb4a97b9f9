"""Parts of the input go to their tasks as pickles in the work folder; reading one runs nothing."""

from __future__ import annotations

import importlib
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from data_pipeline.readers.base import Part
from loopcoder.config.build import SourceConfig
from loopcoder.storage.unpickle import RefusedPickle, unpickle

_PROTOCOL = re.compile(r"([\w.+-]+)(?=::|://)")


def unpickle_part(data: bytes, sources: Sequence[SourceConfig]) -> Part:
    """Read a part that `pickle.dumps` wrote.

    Args:
        data: The pickle.
        sources: Those of the build, whose URLs say which stores it may open.

    Raises:
        RefusedPickle: it wants something else than what parts are made of.
        Exception: it is of another version, or damaged.
    """
    stores = _stores(sources)

    def is_known(module: str, name: str) -> bool:
        if f"{module}.{name}" in stores:
            return True
        if module != SourceConfig.__module__ and not module.startswith(f"{__package__}."):
            return False
        found = getattr(importlib.import_module(module), name, None)
        return isinstance(found, type) and found.__module__ == module

    def open_store(kind: type, args: Any, options: dict[str, Any]) -> Any:
        if kind not in stores.values():
            raise RefusedPickle(f"a call of {kind!r}")
        return kind(*args, **options)

    path = type(pathlib.Path())
    makers: dict[str, Callable[..., Any]] = {
        f"{path.__module__}.{path.__name__}": path,
        "builtins.range": range,
        "fsspec.spec.make_instance": open_store,
    }
    part: Part = unpickle(data, is_known, makers)
    return part


def _stores(sources: Sequence[SourceConfig]) -> dict[str, type]:
    """Return what fsspec opens the URLs of sources with, by name."""
    paths = [p for s in sources for p in ([s.path] if isinstance(s.path, str) else s.path or [])]
    protocols = {found for path in paths for found in _PROTOCOL.findall(path)}
    if not protocols:
        return {}
    import fsspec

    classes = [fsspec.get_filesystem_class(protocol) for protocol in sorted(protocols)]
    return {f"{c.__module__}.{c.__qualname__}": c for c in classes}
