"""What a file is, by its name and, where that leaves it open, its first row."""

from __future__ import annotations

import json

from data_pipeline.langid.names import domain_of, language_of_name
from data_pipeline.readers.archives import ARCHIVES
from data_pipeline.readers.base import row_domains
from data_pipeline.readers.columns import text_columns, value_at
from data_pipeline.readers.compressed import CorruptFileError, decompressed
from data_pipeline.readers.jsonl import lines
from data_pipeline.readers.notebooks import SUFFIX
from data_pipeline.readers.packed import inner_name
from data_pipeline.readers.storage import File
from data_pipeline.readers.tables import CSV, entries, first_of_csv, is_csv, is_list
from data_pipeline.schema import MAX_DOCUMENT_BYTES
from loopcoder.config.build import SourceConfig

# a compressed .json is jsonl in every public corpus
_ROWS_PLAIN = (".jsonl", ".ndjson")
_ROWS_PACKED = tuple(
    f"{name}.{p}" for name in (*_ROWS_PLAIN, ".json") for p in ("gz", "zst", "xz", "bz2")
)
_PARQUET = (".parquet",)


def kind_of(path: File, config: SourceConfig) -> str | None:
    """Return the kind of a file, the language that its name tells, `?` for a shebang's, or None."""
    name = path.name.lower()
    inner = inner_name(name)
    if inner.endswith(".json") and is_list(path, config):
        return "list"
    if config.kind == "chat":  # which are rows of a table, and nothing else
        is_rows = name.endswith((*_ROWS_PLAIN, *_ROWS_PACKED, ".json"))
        return "jsonl" if is_rows else "parquet" if name.endswith(_PARQUET) else None
    if name.endswith(_ROWS_PLAIN + _ROWS_PACKED) or (
        name.endswith(".json") and _holds_rows(path, config)
    ):
        return "jsonl"
    if inner.endswith(CSV) and is_csv(path, config):
        return "csv"
    if name.endswith(_PARQUET):
        return "parquet"
    if name.endswith(ARCHIVES):
        return "archive"
    if inner.endswith(SUFFIX):
        return "notebook"
    return language_of_name(inner) or (None if path.suffix else "?")


def domains_of_kind(kind: str, config: SourceConfig) -> frozenset[str]:
    """Return the domains that a file of this kind may hold documents of."""
    if kind in ("jsonl", "parquet", "csv", "list"):
        return row_domains(config)
    if config.domain != "auto":
        return frozenset({config.domain})
    if kind == "archive":
        return frozenset({"text", "code"})
    return frozenset({"code" if kind in ("?", "notebook") else domain_of(kind)})


def columns_of(path: File) -> list[str]:
    """Return the columns of text in the first row of a table, [] for what is none."""
    inner = inner_name(path.name.lower())
    try:
        if inner.endswith(CSV):
            return text_columns(first_of_csv(path))
        first = next(entries(path), None) if inner.endswith(".json") else None
        first = first or json.loads(next(lines(decompressed(path), MAX_DOCUMENT_BYTES)) or b"")
    except (ValueError, RecursionError, StopIteration, CorruptFileError):
        return []
    return text_columns(first) if isinstance(first, dict) else []


def _holds_rows(path: File, config: SourceConfig) -> bool:
    """Tell whether a .json is jsonl: its first line is an object with the text's column."""
    first = next(lines(decompressed(path), MAX_DOCUMENT_BYTES), None)
    try:
        row = json.loads(first or b"")
    except (ValueError, RecursionError, MemoryError):
        return False
    return isinstance(row, dict) and value_at(row, config.text_field) is not None
