"""Rows of .jsonl, plain or compressed, in bounded memory whatever the file holds."""

from __future__ import annotations

import json
from collections.abc import Iterator

from data_pipeline.readers.base import RowReader, decode
from data_pipeline.readers.compressed import TRUNCATED, decompressed, is_whole
from data_pipeline.readers.rows import row_reader
from data_pipeline.readers.storage import File
from data_pipeline.schema import MAX_DOCUMENT_BYTES, Document, Place, Tally
from loopcoder.config.build import SourceConfig

# JSON may spell a character as \uXXXX: six bytes for one; other columns come on top
_MAX_LINE_BYTES = 8 * MAX_DOCUMENT_BYTES
_BOM = b"\xef\xbb\xbf"


def lines(chunks: Iterator[bytes], max_bytes: int) -> Iterator[bytes | None]:
    """Yield lines without their end; None for a line of more than `max_bytes`, which is never held.

    Only LF ends a line (a CR before it is cut off): JSON may contain U+2028 and its kin.
    """
    rest: list[bytes] = []
    size = 0
    for chunk in chunks:
        *complete, tail = chunk.split(b"\n")
        for part in complete:
            size += len(part)
            yield None if size > max_bytes else b"".join([*rest, part]).removesuffix(b"\r")
            rest, size = [], 0
        size += len(tail)
        if size > max_bytes:
            rest = []
        elif tail:
            rest.append(tail)
    if size:
        yield None if size > max_bytes else b"".join(rest).removesuffix(b"\r")


def jsonl_documents(
    path: File, config: SourceConfig, source: str, tally: Tally, place: str = ""
) -> Iterator[Document]:
    """Read one file; faulty rows are counted, a damaged compressed file is left out as a whole."""
    if not is_whole(path, tally, path):
        return
    reader = row_reader(config, source, str(path), tally, place)
    was_truncated = tally.file_drops[TRUNCATED]
    number = -1
    pending: tuple[int, bytes | None] | None = None
    for number, line in enumerate(lines(decompressed(path, tally), _MAX_LINE_BYTES)):
        tally.bytes_in += 1 + len(line or b"")
        if pending is not None:
            yield from _parse(*pending, reader)
        pending = (number, line)
    is_cut = tally.file_drops[TRUNCATED] > was_truncated
    if pending is not None:
        if is_cut and not _is_json(pending[1]):
            reader.reject("truncated_row", pending[0])
        else:
            yield from _parse(*pending, reader)
    elif not is_cut:
        tally.drop_file("empty_file", Place(str(path)))


def _is_json(line: bytes | None) -> bool:
    try:
        json.loads(line or b"")
    except (ValueError, RecursionError):
        return False
    return True


def _parse(number: int, line: bytes | None, reader: RowReader) -> Iterator[Document]:
    if line is None:
        reader.reject("too_large", number)
        return
    if number == 0 and line.startswith(_BOM):
        reader.tally.notes["byte_order_mark"] += 1
        line = line.removeprefix(_BOM)
    if not line.strip():
        reader.tally.notes["blank_line"] += 1
        return
    text = decode(line, reader.config, reader.tally, f"line {number + 1} of {reader.path}")
    if text is None:
        reader.reject("invalid_utf8", number)
        return
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        reader.reject("broken_json", number)
        return
    document = reader.document(row, number)
    if document is not None:
        yield document
