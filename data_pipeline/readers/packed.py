"""Files that are packed one by one, as in `notes.txt.gz`; xz and bzip2 are unpacked here."""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Iterator
from typing import Any

from data_pipeline.readers.storage import File

PACKERS = (".gz", ".zst", ".xz", ".bz2")
_CHUNK = 1 << 16
_PIECE = 1 << 20
_MAX_XZ_MEMORY = 1 << 30
"""Bytes that a file may ask for; `xz -9` takes 65 MB to unpack."""


class DamagedError(Exception):
    """The content contradicts its checksum or format."""


def inner_name(name: str) -> str:
    """Return the name of what is in a packed file, or the name itself: `a.txt` for `a.txt.gz`."""
    is_packed = name.lower().endswith(PACKERS) and name.rfind(".") > 0
    return name[: name.rfind(".")] if is_packed else name


def unpacked(file: File) -> Iterator[bytes | None]:
    """Yield the content of a .xz or .bz2 in pieces of at most 1 MB; None at last if it is cut off.

    Raises:
        DamagedError: the content is damaged; pieces before the damage were yielded.
    """
    stream: Any = None  # one of several that may follow each other
    is_first = True
    with file.open("rb") as packed:
        while data := packed.read(_CHUNK):
            has_more = False
            while data or has_more:
                if stream is None:
                    # streams are padded by zeros; what else comes after them is no part of the file
                    data = data if is_first else data.lstrip(b"\0")
                    if not data:
                        break
                    stream = _decompressor(file)
                try:
                    piece = stream.decompress(data, _PIECE)
                except (lzma.LZMAError, OSError, ValueError, EOFError) as error:
                    raise DamagedError(f"{file}: {error}") from error
                is_first = False
                data = stream.unused_data if stream.eof else b""
                has_more = not stream.eof and not stream.needs_input
                if stream.eof:
                    stream = None
                if piece:
                    yield piece
    if stream is not None:
        yield None


def _decompressor(file: File) -> Any:
    if file.suffix.lower() == ".xz":
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_XZ_MEMORY)
    return bz2.BZ2Decompressor()
