"""Rows of .csv and .tsv, and of .json that is one list of objects."""

from __future__ import annotations

import csv
import itertools
import json
import re
from codecs import getincrementaldecoder
from collections.abc import Iterator
from dataclasses import dataclass

from data_pipeline.readers.base import decode
from data_pipeline.readers.columns import value_at
from data_pipeline.readers.compressed import (
    TRUNCATED,
    CorruptFileError,
    decompressed,
    is_whole,
)
from data_pipeline.readers.packed import inner_name
from data_pipeline.readers.rows import row_reader
from data_pipeline.readers.storage import File
from data_pipeline.schema import MAX_DOCUMENT_BYTES, Document, Place, Tally
from loopcoder.config.build import SourceConfig

_MAX_ROW_CHARS = 8 * MAX_DOCUMENT_BYTES
_BLANKS, _BETWEEN = re.compile(r"[ \t\r\n]*"), re.compile(r"[ \t\r\n,]*")
CSV = (".csv", ".tsv")


def is_csv(path: File, config: SourceConfig) -> bool:
    """Tell whether the first row of a .csv or .tsv names the text's column."""
    try:
        return config.text_field in next(_csv_rows(path, _End()), [])
    except (csv.Error, CorruptFileError):
        return False


def first_of_csv(path: File) -> dict[str, str]:
    """Return the first row of a .csv or .tsv by its columns, which are those of an empty one too.

    Raises:
        ValueError: it is none.
    """
    try:
        rows = _csv_rows(path, _End())
        names = next(rows, [])
        values = next(rows, [])
    except (csv.Error, CorruptFileError) as error:
        raise ValueError(str(error)) from error
    return dict.fromkeys(names, "") | dict(zip(names, values, strict=False))


def csv_documents(
    path: File, config: SourceConfig, source: str, tally: Tally, place: str
) -> Iterator[Document]:
    """Read a table whose first row names the columns; fields in quotes may have line ends."""
    if not is_whole(path, tally, Place(place)):
        return
    reader = row_reader(config, source, str(path), tally, place)
    number, end = -1, _End()
    was_truncated = tally.file_drops[TRUNCATED]
    try:
        rows = _csv_rows(path, end, tally)
        names = next(rows, [])
        for number, fields in enumerate(rows):
            if not fields:
                tally.notes["blank_line"] += 1
                continue
            is_short = len(fields) < len(names) or tally.file_drops[TRUNCATED] > was_truncated
            if end.is_passed or (end.is_near and is_short):
                reader.reject("truncated_row", number)
                tally.fault("truncated_row", path)
                continue
            row: dict[str, object] = dict(zip(names, fields, strict=False))
            where = f"row {number + 1} of {path}"
            row[config.text_field], stays = _as_utf8(
                row.get(config.text_field), config, tally, where
            )
            if not stays:
                reader.reject("invalid_utf8", number)
                continue
            document = reader.document(row, number)
            if document is not None:
                yield document
    except csv.Error:  # a field that never ends, or NUL in it
        reader.reject("broken_csv", number + 1)


@dataclass
class _End:
    """Whether the end of a table was met, when a row came of it."""

    is_near: bool = False
    """The row's last line has no end, so that it is the last one, or what is left of a line."""
    is_passed: bool = False
    """There are no lines any more, but the row needs one: it is cut off within quotes."""


def _csv_rows(path: File, end: _End, tally: Tally | None = None) -> Iterator[list[str]]:
    csv.field_size_limit(_MAX_ROW_CHARS)
    delimiter = "\t" if inner_name(path.name).lower().endswith(".tsv") else ","
    return csv.reader(_decoded(_pieces(path, tally), end), delimiter=delimiter)


def _decoded(pieces: Iterator[bytes], end: _End) -> Iterator[str]:
    """Yield the lines of a table; bytes that are no UTF-8 come through as surrogates."""
    lines = _lines_with_ends(pieces, end)
    for first in itertools.islice(lines, 1):
        yield first.decode("utf-8-sig", "surrogateescape")
    for line in lines:
        yield line.decode("utf-8", "surrogateescape")
    end.is_passed = True


def _pieces(path: File, tally: Tally | None) -> Iterator[bytes]:
    for piece in decompressed(path, tally):
        if tally is not None:
            tally.bytes_in += len(piece)
        yield piece


def _lines_with_ends(pieces: Iterator[bytes], end: _End) -> Iterator[bytes]:
    """Yield lines with their ends, which may be part of a field in quotes."""
    rest: list[bytes] = []
    size = 0
    for piece in pieces:
        first, *others = piece.split(b"\n")
        rest.append(first)
        size += len(first)
        if others:
            yield b"".join(rest) + b"\n"
            *whole, last = others
            for line in whole:
                yield line + b"\n"
            rest, size = [last], len(last)
        if size > _MAX_ROW_CHARS:
            raise csv.Error("a line that never ends")
    if size:
        end.is_near = True
        yield b"".join(rest)


def _as_utf8(value: object, config: SourceConfig, tally: Tally, where: str) -> tuple[object, bool]:
    """Return a text whose bytes were kept as surrogates, decoded as the config says, and whether it
    stays; other values come back as they are."""
    if not isinstance(value, str) or value.isascii():
        return value, True
    try:
        data = value.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that JSON spells: counted as such
        return value, True
    text = decode(data, config, tally, where)
    return text, text is not None


def is_list(path: File, config: SourceConfig) -> bool:
    """Tell whether a .json is a list whose first entry is an object with the text's field."""
    try:
        first = next(entries(path), None)
    except (ValueError, RecursionError, CorruptFileError):
        return False
    return isinstance(first, dict) and (
        config.kind == "chat" or value_at(first, config.text_field) is not None
    )


def list_documents(
    path: File, config: SourceConfig, source: str, tally: Tally, place: str
) -> Iterator[Document]:
    """Read a list entry by entry; what follows a broken entry is lost, and counts as one row."""
    if not is_whole(path, tally, Place(place)):
        return
    reader = row_reader(config, source, str(path), tally, place)
    number = -1
    try:
        for number, row in enumerate(entries(path, tally)):
            if isinstance(row, dict) and config.text_field in row:
                text, stays = _as_utf8(
                    row[config.text_field], config, tally, f"entry {number + 1} of {path}"
                )
                if not stays:
                    reader.reject("invalid_utf8", number)
                    continue
                row[config.text_field] = text
            document = reader.document(row, number)
            if document is not None:
                yield document
    except (ValueError, RecursionError):
        reader.reject("broken_json", number + 1)


def entries(path: File, tally: Tally | None = None) -> Iterator[object]:
    """Yield the entries of the list that a file is.

    Raises:
        ValueError: it is no list, is cut off, or has an entry of over 64 MB.
    """
    decoder = json.JSONDecoder()
    pieces = _pieces(path, tally)
    utf8 = getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
    text, start, is_open, is_done, wanted = "", 0, False, False, 0
    while True:
        start = (_BETWEEN if is_open else _BLANKS).match(text, start).end()  # type: ignore[union-attr]
        if start < len(text) and not is_open:
            if text[start] != "[":
                raise ValueError("no list")
            is_open, start = True, start + 1
            continue
        if start < len(text) and text[start] == "]":
            return
        if len(text) - start > wanted or is_done:
            try:
                value, end = decoder.raw_decode(text, start)
            except ValueError:
                if is_done or len(text) - start > _MAX_ROW_CHARS:
                    raise
                wanted = 2 * (len(text) - start)  # so that a long entry is not parsed too often
            else:
                # a number may go on in the next piece
                if end < len(text) or is_done:
                    yield value
                    start, wanted = end, 0
                    continue
        piece = next(pieces, None)
        is_done = piece is None
        text, start = text[start:] + utf8.decode(piece or b"", final=is_done), 0
