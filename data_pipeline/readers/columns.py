"""Fields of a row by their path: `text`, or `a.b` for the field b of the field a."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=64)
def steps(path: str) -> tuple[str, ...]:
    r"""Return the names along a path; `\.` is a dot within a name."""
    return tuple(part.replace("\\.", ".") for part in re.split(r"(?<!\\)\.", path))


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """Return what a row has at a path, or None; a column of that very name comes first."""
    if path in row or "." not in path:
        return row.get(path)
    found: Any = row
    for name in steps(path):
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found


def column_of(path: str | None, columns: Collection[str]) -> str | None:
    """Return the column of a table that holds what a path leads to; None: it has none."""
    if path is None or path in columns:
        return path
    first = steps(path)[0]
    return first if first in columns else None
