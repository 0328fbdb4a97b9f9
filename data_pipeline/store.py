"""Documents between two stages: one file of compressed JSON lines a rank, complete once it has its
marker."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.durable import write_json
from data_pipeline.schema import Document, Tally
from loopcoder.errors import InputError

_LEVEL = 3
"""zstd: 350 MB/s a core to write, over 1 GB/s to read, a quarter of the size."""


@dataclass(frozen=True)
class Store:
    """The output of a stage.

    A rank's file appears under its name when it is complete and on disk; its marker, which says so
    and holds the tally, comes after it. What a killed process left is overwritten. The folder's
    name holds the fingerprint of all that determines the content, so that a marker never speaks of
    other input.
    """

    root: Path
    """Folder of the whole pipeline."""
    stage: str
    """Name of the stage."""
    fingerprint: str
    """Hash of config, code version and input."""
    world_size: int
    """Files that there will be."""

    @property
    def folder(self) -> Path:
        return self.root / f"{self.stage}-{self.fingerprint}"

    def is_done(self, rank: int) -> bool:
        """Say whether a rank's output is complete."""
        return self._marker(rank).exists()

    def missing(self) -> list[int]:
        """Return the ranks that are still to be done."""
        return [rank for rank in range(self.world_size) if not self.is_done(rank)]

    def write(self, rank: int, documents: Iterable[Document], tally: Tally) -> None:
        """Write a rank's documents, and the tally of the stage that yields them once it is done.

        Raises:
            RuntimeError: the tally does not add up.
            OSError: the disk is full or fails; what was begun is removed.
        """
        import orjson
        import zstandard

        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._file(rank)
        temporary = path.with_name(path.name + f".{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                compressor = zstandard.ZstdCompressor(_LEVEL, write_checksum=True)
                with compressor.stream_writer(file, closefd=False) as out:
                    for document in documents:
                        out.write(orjson.dumps(_row(document)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            tally.check()
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self.finish(rank, tally)

    def finish(self, rank: int, tally: Tally) -> None:
        """Write a rank's marker; for a stage that writes files of its own it is all there is."""
        tally.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._file(rank)
        marker: dict[str, Any] = {"fingerprint": self.fingerprint, "tally": tally.as_dict()}
        if path.exists():
            marker["bytes"] = path.stat().st_size
        write_json(self._marker(rank), marker)

    def read(self, rank: int) -> Iterator[Document]:
        """Yield a rank's documents.

        Raises:
            InputError: the file is missing, cut off or damaged.
        """
        import orjson
        import zstandard

        path, fix = (
            self._file(rank),
            f"delete {self._marker(rank)} and start the same command again",
        )
        wanted = self._mark(rank).get("bytes")
        if not path.exists() or path.stat().st_size != wanted:
            found = path.stat().st_size if path.exists() else "no"
            why = "it was cut off or replaced after it was written"
            raise InputError.of(f"{path} has {found} bytes, its marker says {wanted}", why, fix)
        try:
            with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as data:
                for line in _lines(data):
                    row = orjson.loads(line)
                    yield Document(**row)
        except (zstandard.ZstdError, orjson.JSONDecodeError, TypeError) as error:
            raise InputError.of(f"{path} cannot be read: {error}", "it was damaged", fix) from error

    def tally(self) -> Tally:
        """Return the sum of the tallies of all ranks.

        Raises:
            RuntimeError: a rank is not done.
        """
        if missing := self.missing():
            raise RuntimeError(f"stage {self.stage}: ranks {missing} are not done")
        total = Tally(self.stage)
        for rank in range(self.world_size):
            part = self._mark(rank)["tally"]
            total.rows_in += part["rows_in"]
            total.rows_out += part["rows_out"]
            total.drops.update(part["drops"])
            total.notes.update(part["notes"])
            total.file_drops.update(part["file_drops"])
        return total

    def _file(self, rank: int) -> Path:
        return self.folder / f"{rank:05d}.jsonl.zst"

    def _marker(self, rank: int) -> Path:
        return self.folder / f"{rank:05d}.done.json"

    def _mark(self, rank: int) -> dict[str, Any]:
        marker: dict[str, Any] = json.loads(self._marker(rank).read_text(encoding="utf-8"))
        return marker


def _row(document: Document) -> dict[str, Any]:
    return {
        "id": document.id,
        "text": document.text,
        "domain": document.domain,
        "language": document.language,
        "source": document.source,
        "path": document.path,
        "meta": dict(document.meta),
    }


def _lines(data: Any) -> Iterator[bytes]:
    """Yield lines of a stream; unlike str's, they end at LF only."""
    rest = b""
    while chunk := data.read(1 << 20):
        first, *others = chunk.split(b"\n")
        rest += first
        for line in others:
            yield rest
            rest = line
    if rest:
        yield rest
