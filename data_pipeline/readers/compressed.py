"""The content of plain and compressed files, in bounded memory whatever they hold."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

from data_pipeline.readers.packed import PACKERS, DamagedError, unpacked
from data_pipeline.readers.storage import File
from data_pipeline.schema import Tally
from loopcoder.backends import require

TRUNCATED = "truncated_file"
"""Why the end of a file is missing: it was cut off."""
_CHUNK = 1 << 18
# 4 bytes of zstd may stand for 128 kB, and its object knows no limit: 16 MB per piece at most
_ZSTD_CHUNK = 1 << 9
_PIECE = 1 << 20
_MAX_ZSTD_WINDOW = 1 << 31
"""What `zstd --long=31` makes, as some public corpora are packed; memory only if a file asks."""


class CorruptFileError(Exception):
    """A compressed file whose content contradicts its checksum or format."""


def decompressed(path: File, tally: Tally | None = None) -> Iterator[bytes]:
    """Yield the content of a plain, .gz, .zst, .xz or .bz2 file in pieces.

    A file that is cut off yields its good prefix, and what is lost is listed as `truncated_file`.
    (gzip.GzipFile would lose up to 1 MB of it.) Zeros after the last member of a file are padding;
    what else may follow is ignored, as `gzip -t` does, and listed as `trailing_garbage`. Pieces
    are small however well the file is packed.

    Raises:
        CorruptFileError: the content is damaged; pieces before the damage were yielded.
        InputError: .zst, and the package zstandard is missing.
    """
    if path.suffix.lower() in (".xz", ".bz2"):
        yield from _unpacked(path, tally)
        return
    make = _decompressor(path)
    with path.open("rb") as file:
        if make is None:
            while chunk := file.read(_CHUNK):
                yield chunk
            return
        starts = _STARTS[".zst" if path.suffix == ".zst" else ".gz"]
        stream = None  # one member of a .gz, one frame of a .zst
        is_first = True
        held = b""  # less than the first bytes of a member
        while data := file.read(_ZSTD_CHUNK if path.suffix == ".zst" else _CHUNK):
            data, held = held + data, b""
            is_full = False
            while data or is_full:
                if stream is None and not is_first:
                    data = data.lstrip(b"\0")
                    if len(data) < _START_BYTES and _may_start(data, starts):
                        held, data = data, b""
                        continue
                    if not data.startswith(starts):
                        _lost(tally, "trailing_garbage", path)
                        return
                stream, is_first = stream or make(), False
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
        if stream is not None or held:
            _lost(tally, TRUNCATED, path)


_START_BYTES = 4
_STARTS = {
    ".gz": (b"\x1f\x8b",),
    # a frame, or one of 16 kinds that are to be skipped
    ".zst": (b"\x28\xb5\x2f\xfd", *(bytes([n]) + b"\x2a\x4d\x18" for n in range(0x50, 0x60))),
}


def _may_start(data: bytes, starts: tuple[bytes, ...]) -> bool:
    return any(start.startswith(data) or data.startswith(start) for start in starts)


def is_whole(path: File, tally: Tally, place: object) -> bool:
    """Tell whether a file may be read row by row: nothing of a corrupt one may get through.

    A packed one takes an extra pass, faster than parsing; a corrupt one is counted.
    """
    if path.suffix.lower() in PACKERS:
        try:
            for _ in decompressed(path):
                pass
        except CorruptFileError:
            tally.damaged("corrupt_" + path.suffix[1:].lower(), place)
            return False
    return True


def _lost(tally: Tally | None, reason: str, path: File) -> None:
    if tally is not None:
        tally.damaged(reason, path)


def _unpacked(path: File, tally: Tally | None) -> Iterator[bytes]:
    try:
        for piece in unpacked(path):
            if piece is not None:
                yield piece
            else:
                _lost(tally, TRUNCATED, path)
    except DamagedError as error:
        raise CorruptFileError(str(error)) from error


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
