"""Rows of parquet files, row group by row group: a damaged one costs only itself."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from data_pipeline.readers.base import columns, decode, lacking
from data_pipeline.readers.columns import (
    column_of,
    message_columns,
    steps,
    text_columns,
    without_nulls,
)
from data_pipeline.readers.rows import row_reader
from data_pipeline.readers.storage import File, is_disk_fault
from data_pipeline.schema import Document, Place, Tally
from loopcoder.backends import require
from loopcoder.config.build import SourceConfig

_BATCH_ROWS = 256
_BATCH_BYTES = 64 << 20
"""Of text that is decoded at once; a single row may be larger."""
_ARROW_SCHEMA, _NO_SCHEMA = b"ARROW:schema", b"arrow_schema"


class _InvalidText:
    """Stands for a text that is dropped for bytes that are not UTF-8."""


def parquet_documents(
    path: File, config: SourceConfig, source: str, tally: Tally, place: str
) -> Iterator[Document]:
    """Read one file; what a damaged row group held is counted as `corrupt_rows`.

    Raises:
        OSError: the file cannot be read, which is no damage.
        InputError: pyarrow is missing, or a text is not UTF-8 and the config allows none such.
    """
    needs = f"{path} is a parquet file", "reading it needs pyarrow", "pip install pyarrow"
    pa, pq = require("pyarrow", *needs), require("pyarrow.parquet", *needs)
    # a local file is read by Arrow itself; whether it can be is told apart from what is in it
    with path.open("rb") as stored:
        try:
            whole = path if isinstance(path, Path) else stored
            file = pq.ParquetFile(whole, page_checksum_verification=True)
            if any(pa.types.is_dictionary(type) for type in file.schema_arrow.types):
                plain = _without_arrow_schema(stored, pq)
                file = pq.ParquetFile(whole, metadata=plain, page_checksum_verification=True)
            names = file.schema_arrow.names
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        except (pa.ArrowException, OSError, ValueError) as error:
            if is_disk_fault(error):
                raise
            tally.damaged("corrupt_parquet", path)
            return
        if (lacks := lacking(config, names)) is not None:
            tally.damaged(f"no_column_{lacks}", path)
            likely = message_columns if config.kind == "chat" else text_columns
            tally.columns = tally.columns or likely(_example(file.schema_arrow))
            return
        reader = row_reader(config, source, str(path), tally, place, names)
        start = 0
        for group, num_rows in enumerate(groups):
            number = start
            try:
                for row in _rows(file, group, path, config, tally):
                    number += 1
                    if any(value is _InvalidText for value in row.values()):
                        reader.reject("invalid_utf8", number - 1)
                        continue
                    document = reader.document(row, number - 1)
                    if document is not None:
                        yield document
            except (pa.ArrowException, OSError) as error:
                if is_disk_fault(error):
                    raise
                lost = max(start + num_rows - number, 0)
                tally.rows_in += lost
                for row_number in range(number, number + lost):
                    tally.drop("corrupt_rows", Place(place, row_number))
                tally.notes["corrupt_row_group"] += 1
                tally.fault("corrupt_rows", path, lost)
            start += num_rows


def _example(schema: Any) -> dict[str, object]:
    """Return a row of a table: texts are empty, lists have one item."""
    import pyarrow as pa

    def example(type: Any) -> object:
        if pa.types.is_list(type) or pa.types.is_large_list(type):
            return [example(type.value_type)]
        if pa.types.is_struct(type):
            return {type.field(i).name: example(type.field(i).type) for i in range(type.num_fields)}
        return "" if pa.types.is_string(type) or pa.types.is_large_string(type) else None

    return {field.name: example(field.type) for field in schema}


def _without_arrow_schema(stored: IO[bytes], pq: Any) -> Any:
    """Return the metadata of a file in which its columns are what parquet knows: no dictionaries.

    A writer may have stored that a column was a dictionary with indices of 8 or 16 bits; Arrow
    restores that for all of a row group, where the dictionaries together may have more entries.
    """
    stored.seek(-8, io.SEEK_END)
    size = int.from_bytes(stored.read(4), "little")
    stored.seek(-8 - size, io.SEEK_END)
    footer = stored.read(size).replace(_ARROW_SCHEMA, _NO_SCHEMA)
    return pq.read_metadata(io.BytesIO(b"PAR1" + footer + size.to_bytes(4, "little") + b"PAR1"))


def _rows(
    file: Any, group: int, path: File, config: SourceConfig, tally: Tally
) -> Iterator[dict[str, object]]:
    names = file.schema_arrow.names
    wanted = list(dict.fromkeys(c for name in columns(config) if (c := column_of(name, names))))
    info = file.metadata.row_group(group)
    row_bytes = info.total_byte_size // max(info.num_rows, 1) + 1
    size = max(1, min(_BATCH_ROWS, _BATCH_BYTES // row_bytes))
    for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=wanted):
        tally.bytes_in += batch.nbytes
        found = {f: c for f in columns(config) if (c := _column(batch, f)) is not None}
        values = [_values(column, config, tally, path) for column in found.values()]
        for row in zip(*values, strict=True):
            yield dict(zip(found, row, strict=True))


def _column(batch: Any, field: str) -> Any:
    """Return the column that a field stands for, that of a struct if it is a path; None: the table
    has none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    name = column_of(field, batch.schema.names)
    if name is None:
        return None
    column = batch.column(name)
    for step in steps(field)[1:] if name != field else ():
        if not pa.types.is_struct(column.type) or column.type.get_field_index(step) < 0:
            return pa.nulls(len(column))
        column = pc.struct_field(column, step)
    return column


def _values(column: Any, config: SourceConfig, tally: Tally, path: File) -> Iterator[object]:
    """Yield the values of a column: text of any type as str, others as something that is none."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_null(column.type):
        yield from [None] * len(column)
    elif config.kind == "chat" and (types.is_nested(column.type) or types.is_map(column.type)):
        yield from map(without_nulls, column.to_pylist())
    elif types.is_integer(column.type):  # may name a repository
        yield from column.to_pylist()
    elif not (
        types.is_string(column.type)
        or types.is_large_string(column.type)
        or types.is_string_view(column.type)
        or types.is_binary(column.type)
        or types.is_large_binary(column.type)
        or types.is_binary_view(column.type)
    ):
        # what lists and other numbers hold is of no account
        yield from (0.0 if valid else None for valid in column.is_valid().to_pylist())
    else:
        for value in column.cast(pa.large_binary()).to_pylist():
            if value is None:
                yield None
                continue
            text = decode(value, config, tally, f"a row of {path}")
            yield _InvalidText if text is None else text
