"""Fields of a row by their path: `text`, or `a.b` for the field b of the field a."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from loopcoder.config.fields import typed

_LIKELY = ("text", "content", "contents", "body", "code", "document", "raw_content", "markdown")
"""Names of the column with the documents in public corpora, compared without case."""
_SPEAKERS = {"role", "from"}
"""Fields of messages that say who speaks."""
_NO_CONVERSATIONS = {"prompt", "rejected"}
"""Columns of preferences with messages that are no conversation to learn."""
_OFFERED = 8
"""Columns that a message names."""


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


def without_nulls(value: Any) -> Any:
    """Return a value of a typed table without what is null in it: each of its structs has the
    fields of all, so that a null there says no more than that others have that field."""
    if isinstance(value, Mapping):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def text_columns(row: Mapping[str, Any]) -> list[str]:
    """Return the paths of what is text in a row, that of the document first if it can be told."""
    found: dict[str, str] = {}
    for name, value in row.items():
        outer = str(name).replace(".", "\\.")
        inner = value if isinstance(value, Mapping) else {}
        fields = {f"{outer}.{str(n).replace('.', chr(92) + '.')}": v for n, v in inner.items()}
        fields |= {str(name): value}
        found |= {path: v for path, v in fields.items() if isinstance(v, str)}
    return sorted(found, key=lambda path: (not _is_likely(path), -len(found[path])))


def message_columns(row: Mapping[str, Any]) -> list[str]:
    """Return the columns of a row that have a list of messages, or its JSON."""
    return [
        str(name)
        for name, value in row.items()
        if name not in _NO_CONVERSATIONS and _has_messages(value)
    ]


def _has_messages(value: Any) -> bool:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, Mapping) and not _SPEAKERS.isdisjoint(one) for one in value)
    )


def _is_likely(path: str) -> bool:
    return steps(path)[-1].lower() in _LIKELY


def offered(columns: Sequence[str], source: str) -> tuple[str, str]:
    """Return the columns that a table has, in words, and the override that takes the first."""
    field = field_of(source.partition("-")[2])
    return shown_columns(columns), typed(f"{key_of(source)}.{field}={columns[0]}")


def key_of(source: str) -> str:
    """Return the key of a source, by its name (`0-chat`)."""
    return f"data.build.sources.{source.partition('-')[0]}"


def field_of(kind: str) -> str:
    """Return the field of a source of some kind that names the column of its documents."""
    return "messages_field" if kind == "chat" else "text_field"


def shown_columns(columns: Sequence[str]) -> str:
    """Return the first columns of a table in words."""
    return ", ".join(columns[:_OFFERED]) + (", ..." if len(columns) > _OFFERED else "")
