"""Documents between two stages: files of compressed JSON lines, called chunks.

What reads a part of the input writes one chunk after the other, each up to a size, so that the
stages that follow work on pieces of bounded size however large a single input file is. A chunk
appears under its name when it is on disk; that all chunks of a part are there is said by the marker
of the task that wrote them, which names their sizes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from data_pipeline.schema import Document
from loopcoder.errors import InputError, counted
from loopcoder.storage.files import whole_file, write_bytes

MAX_CHUNK_DOCUMENTS = 1_000_000
"""Later stages hold some 100 bytes per document of a chunk."""

_LEVEL = 3
"""zstd: 350 MB/s per core to write, over 1 GB/s to read, a quarter of the size."""


@dataclass(frozen=True)
class Chunk:
    """A file of documents."""

    name: str
    """File below the folder of documents."""
    num_bytes: int
    """Size of the file."""
    documents: int
    text_bytes: dict[str, int] = field(default_factory=dict)
    """UTF-8 of the documents of each domain."""


class ChunkWriter:
    """Writes the documents of one part; leave the `with` block to have the last chunk on disk."""

    def __init__(self, folder: Path, part: int, max_bytes: int) -> None:
        self._folder, self._part, self._max_bytes = folder, part, max_bytes
        self._file: Compressed | None = None
        self._open = ExitStack()
        self._documents = 0
        self._text_bytes: dict[str, int] = {}
        self.chunks: list[Chunk] = []

    def add(self, document: Document) -> int:
        """Append a document; return its bytes of UTF-8."""
        if self._file is None:
            self._file = Compressed(self._open.enter_context(whole_file(self._path)))
        self._file.write(dumps(row_of(document)) + b"\n")
        size = len(document.text.encode())
        self._text_bytes[document.domain] = self._text_bytes.get(document.domain, 0) + size
        self._documents += 1
        if (
            sum(self._text_bytes.values()) >= self._max_bytes
            or self._documents >= MAX_CHUNK_DOCUMENTS
        ):
            self._finish()
        return size

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._part:05d}-{len(self.chunks):04d}.jsonl.z"

    def _finish(self) -> None:
        if self._file is None:
            return
        path = self._path
        size = self._file.finish()
        self._open.close()
        self.chunks.append(Chunk(path.name, size, self._documents, self._text_bytes))
        self._file, self._documents, self._text_bytes = None, 0, {}

    def __enter__(self) -> ChunkWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._finish()
        self._open.__exit__(kind, error, trace)


def read_chunk(folder: Path, chunk: Chunk) -> Iterator[Document]:
    """Yield the documents of a chunk.

    Raises:
        InputError: the file is missing, cut off or damaged.
    """
    path = folder / chunk.name
    fix = f"delete {folder.parent} and start the same command again"
    found = path.stat().st_size if path.exists() else None
    if found != chunk.num_bytes:
        raise InputError.of(
            f"{path} has {'no' if found is None else found} bytes, not {chunk.num_bytes}",
            "it was cut off or replaced after it was written",
            fix,
        )
    count = 0
    try:
        with open(path, "rb") as file:
            for line in packed_lines(file):
                yield Document(**loads(line))
                count += 1
    except InputError:
        raise
    except Exception as error:  # of three packages, as the content goes wrong
        raise InputError.of(f"{path} cannot be read: {error}", "it was damaged", fix) from error
    if count != chunk.documents:
        fact = f"{path} has {counted(count, 'document')}, not {chunk.documents}"
        raise InputError.of(fact, "it was damaged", fix)


def write_chunk_list(path: Path, chunks: Iterable[Chunk]) -> None:
    """Write a list of chunks, whole."""
    write_bytes(path, json.dumps([astuple(chunk) for chunk in chunks]).encode())


def read_chunk_list(path: Path) -> list[Chunk]:
    """Return the chunks of a list."""
    return [Chunk(*fields) for fields in json.loads(path.read_text("utf-8"))]


# The data extra brings orjson and zstandard. An image without it can train on the sample, whose
# chunks are then packed by the standard library. The documents are the same.
_FAST = find_spec("orjson") is not None and find_spec("zstandard") is not None
PACKED = "zst" if _FAST else "gz"
"""Suffix of what `Compressed` writes."""


def dumps(row: dict[str, Any] | list[Any]) -> bytes:
    """Return a row as a line of JSON without its end."""
    if _FAST:
        import orjson

        return orjson.dumps(row)
    return json.dumps(row, ensure_ascii=False).encode()


def loads(line: bytes) -> Any:
    """Return what a line says."""
    if _FAST:
        import orjson

        return orjson.loads(line)
    return json.loads(line)


def packed(data: bytes) -> bytes:
    """Compress what will be read by itself."""
    return bytes(_codec(_FAST)[0](data))


def unpacked(data: bytes) -> bytes:
    """Return what `packed` compressed."""
    return bytes(_codec(_FAST)[1](data))


@cache
def _codec(fast: bool) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    if not fast:
        return partial(zlib.compress, level=1), zlib.decompress
    import zstandard

    return zstandard.ZstdCompressor(_LEVEL).compress, zstandard.ZstdDecompressor().decompress


class Compressed:
    """Compresses into a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._out: Any
        if _FAST:
            import zstandard

            self._out = zstandard.ZstdCompressor(_LEVEL, write_checksum=True).compressobj()
        else:
            self._out = zlib.compressobj(1, wbits=31)

    def write(self, data: bytes) -> None:
        self._file.write(self._out.compress(data))

    def finish(self) -> int:
        """Write the end; return the size."""
        self._file.write(self._out.flush())
        return self._file.tell()


def row_of(document: Document) -> dict[str, Any]:
    """Return the fields of a document as JSON can say them."""
    return {
        "id": document.id,
        "text": document.text,
        "domain": document.domain,
        "language": document.language,
        "source": document.source,
        # a name of a file need not be UTF-8
        "path": document.path.encode(errors="backslashreplace").decode(),
        "meta": dict(document.meta),
    }


def packed_lines(file: BinaryIO, packed: str | None = None) -> Iterator[bytes]:
    """Yield lines of a compressed file; unlike str's, they end at LF only.

    Args:
        file: The file.
        packed: How, `zst` or `gz`; None: as `Compressed` does it here.

    Raises:
        ValueError: it is damaged or cut off.
    """
    if packed == "zst" or (packed is None and _FAST):
        import zstandard

        out: Any = zstandard.ZstdDecompressor().decompressobj()
    else:
        out = zlib.decompressobj(wbits=31)
    rest: list[bytes] = []
    while piece := file.read(1 << 17):
        try:
            content = out.decompress(piece)
        except Exception as error:  # zlib.error or ZstdError, whose package may be missing
            raise ValueError(f"it is damaged: {error}") from error
        first, *others = content.split(b"\n")
        rest.append(first)
        for line in others:
            yield b"".join(rest)
            rest = [line]
    if not out.eof:
        raise ValueError("it is cut off")
