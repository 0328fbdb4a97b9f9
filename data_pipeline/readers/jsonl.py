"""Rows of .jsonl, plain or compressed, in bounded memory whatever the file holds."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from data_pipeline.optional import require
from data_pipeline.readers.base import RowReader, decode
from data_pipeline.schema import MAX_DOCUMENT_BYTES, Document, Tally
from loopcoder.config.build import SourceConfig

if TYPE_CHECKING:
    from data_pipeline.readers.storage import File

_CHUNK = 1 << 18
# 4 bytes of zstd may stand for 128 kB, and its object knows no limit: 16 MB a piece at most
_ZSTD_CHUNK = 1 << 9
_PIECE = 1 << 20
_MAX_ZSTD_WINDOW = 1 << 31
"""What `zstd --long=31` makes, as some public corpora are packed; memory only if a file asks."""
# JSON may spell a character as \uXXXX: six bytes for one; other columns come on top
_MAX_LINE_BYTES = 8 * MAX_DOCUMENT_BYTES
_BOM = b"\xef\xbb\xbf"


class CorruptFileError(Exception):
    """A compressed file whose content contradicts its checksum or format."""


def decompressed(path: File, tally: Tally | None = None) -> Iterator[bytes]:
    """Yield the content of a plain, .gz or .zst file in pieces.

    A file that is cut off yields its good prefix and counts as `truncated_file`. (gzip.GzipFile
    would lose up to 1 MB of it.) Pieces are small however well the file is packed.

    Raises:
        CorruptFileError: the content is damaged; pieces before the damage were yielded.
        InputError: .zst, and the package zstandard is missing.
    """
    make = _decompressor(path)
    with path.open("rb") as file:
        if make is None:
            while chunk := file.read(_CHUNK):
                yield chunk
            return
        stream = None  # one member of a .gz, one frame of a .zst
        while data := file.read(_ZSTD_CHUNK if path.suffix == ".zst" else _CHUNK):
            is_full = False
            while data or is_full:
                stream = stream or make()
                try:
                    piece, data = stream.feed(data)
                except Exception as e:  # zlib.error or ZstdError, whose package may be missing
                    raise CorruptFileError(f"{path}: {e}") from e
                # zlib may hold back output although it has taken all input
                is_full = len(piece) >= _PIECE and not stream.eof
                if stream.eof:
                    stream = None
                if piece:
                    yield piece
        if stream is not None and tally is not None:
            tally.notes["truncated_file"] += 1


class _Stream:
    """One member or frame: takes packed bytes, returns a piece and the bytes not yet taken."""

    def __init__(self, decompressor: Any, limits: bool) -> None:
        self._decompressor = decompressor
        self._limits = limits

    @property
    def eof(self) -> bool:
        return bool(self._decompressor.eof)

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        if self._limits:
            piece = self._decompressor.decompress(data, _PIECE)
            rest = self._decompressor.unconsumed_tail
        else:
            piece = self._decompressor.decompress(data)
            rest = b""
        return piece, self._decompressor.unused_data if self.eof else rest


def _decompressor(path: File) -> Callable[[], _Stream] | None:
    if path.suffix.lower() in (".gz", ".tgz"):
        return lambda: _Stream(zlib.decompressobj(wbits=31), limits=True)
    if path.suffix == ".zst":
        zstandard = require(
            "zstandard",
            f"{path} is compressed with zstd",
            "reading it needs the package zstandard, which is not installed",
            "pip install zstandard, or unpack the file",
        )
        unpack = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW)
        return lambda: _Stream(unpack.decompressobj(), limits=False)
    return None


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
    path: File, config: SourceConfig, source: str, tally: Tally
) -> Iterator[Document]:
    """Read one file; faulty rows are counted, a damaged compressed file is left out as a whole."""
    if path.suffix in (".gz", ".zst"):
        # A pass of its own, faster than parsing: nothing of a corrupt file may get through.
        try:
            for _ in decompressed(path):
                pass
        except CorruptFileError:
            tally.file_drops["corrupt_" + path.suffix[1:]] += 1
            return
    reader = RowReader(config, source, str(path), tally)
    was_truncated = tally.notes["truncated_file"]
    number = -1
    pending: tuple[int, bytes | None] | None = None
    for number, line in enumerate(lines(decompressed(path, tally), _MAX_LINE_BYTES)):
        if pending is not None:
            yield from _parse(*pending, reader)
        pending = (number, line)
    if pending is not None:
        if tally.notes["truncated_file"] > was_truncated and not _is_json(pending[1]):
            reader.reject("truncated_row")
        else:
            yield from _parse(*pending, reader)
    else:
        tally.notes["empty_file"] += 1


def _is_json(line: bytes | None) -> bool:
    try:
        json.loads(line or b"")
    except (ValueError, RecursionError):
        return False
    return True


def _parse(number: int, line: bytes | None, reader: RowReader) -> Iterator[Document]:
    if line is None:
        reader.reject("too_large")
        return
    if number == 0 and line.startswith(_BOM):
        reader.tally.notes["byte_order_mark"] += 1
        line = line.removeprefix(_BOM)
    if not line.strip():
        reader.tally.notes["blank_line"] += 1
        return
    text = decode(line, reader.config, reader.tally, f"line {number + 1} of {reader.path}")
    if text is None:
        reader.reject("invalid_utf8")
        return
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        reader.reject("broken_json")
        return
    document = reader.document(row, number)
    if document is not None:
        yield document
