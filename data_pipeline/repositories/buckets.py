"""Files of repositories between the stages that sort and join them: written by chunk of the input,
read by bucket.

A repository is in one bucket. `Buckets` appends packed documents to the files of their buckets;
`entries` tells of every file in a bucket what its documents are, so that they can be sorted without
their texts, and `read` returns one of them. So a repository may be larger than memory.

    FOLDER/bucket-00003/00001.docs   files of bucket 3 from chunk 1: length (u32), packed JSON, ...
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import xxhash

from data_pipeline.repositories.names import Membership
from data_pipeline.schema import Document
from data_pipeline.tasks.chunks import dumps, loads, packed, row_of, unpacked
from loopcoder.storage.files import FileEntry

_BUFFER_BYTES = 1 << 26
_LENGTH_BYTES = 4


class Entry(NamedTuple):
    """A file in a bucket, without its text; entries are sorted as they will be joined."""

    source: str
    key: str
    language: str
    order: str
    """The path with a sign before every other in place of `/`: a folder's files stay together."""
    document_id: str
    name: str
    num_bytes: int
    """UTF-8 that it adds to a document."""
    chunk_file: int
    start: int
    length: int

    @property
    def path(self) -> str:
        return self.order.replace("\0", "/")

    @property
    def group(self) -> tuple[str, str, str]:
        """What files of one document have in common."""
        return self[:3]


def bucket_file(folder: Path, bucket: int, chunk: int) -> Path:
    """Return where the files of a bucket from a chunk are."""
    return folder / f"bucket-{bucket:05}" / f"{chunk:05}.docs"


class Buckets:
    """Writes the files of one chunk to their buckets."""

    def __init__(self, folder: Path, chunk: int, num_buckets: int) -> None:
        self._folder, self._chunk, self._num_buckets = folder, chunk, num_buckets
        self._waiting: dict[int, list[bytes]] = {}
        self._waiting_bytes = 0
        self._sizes: dict[int, int] = {}
        self._digests: dict[int, xxhash.xxh3_128] = {}

    def add(self, document: Document, member: Membership) -> None:
        """Send a file to the bucket of its repository."""
        row = packed(dumps([*member, row_of(document)]))
        bucket = xxhash.xxh3_64_intdigest(member.key.encode()) % self._num_buckets
        line = len(row).to_bytes(_LENGTH_BYTES, "little") + row
        self._waiting.setdefault(bucket, []).append(line)
        self._waiting_bytes += len(line)
        if self._waiting_bytes > _BUFFER_BYTES:
            self._flush()

    def finish(self) -> dict[Path, FileEntry]:
        """Write what waits; return the files."""
        self._flush()
        return {
            bucket_file(self._folder, bucket, self._chunk): {
                "bytes": self._sizes[bucket],
                "xxh3_128": digest.hexdigest(),
            }
            for bucket, digest in sorted(self._digests.items())
        }

    def _flush(self) -> None:
        for bucket, lines in sorted(self._waiting.items()):
            path = bucket_file(self._folder, bucket, self._chunk)
            is_new = bucket not in self._sizes
            if is_new:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._sizes[bucket], self._digests[bucket] = 0, xxhash.xxh3_128()
            data = b"".join(lines)
            # the first block replaces what a task left that was killed
            with open(path, "wb" if is_new else "ab") as file:
                file.write(data)
            self._sizes[bucket] += len(data)
            self._digests[bucket].update(data)
        self._waiting.clear()
        self._waiting_bytes = 0


def entries(files: Sequence[Path]) -> Iterator[Entry]:
    """Yield every file of a bucket, given as all its files of `Buckets`."""
    for number, path in enumerate(files):
        start = 0
        with open(path, "rb") as file:
            while head := file.read(_LENGTH_BYTES):
                start += _LENGTH_BYTES
                length = int.from_bytes(head, "little")
                key, name, inner, row = loads(unpacked(file.read(length)))
                yield Entry(
                    sys.intern(row["source"]),
                    sys.intern(key),
                    sys.intern(row["language"]),
                    inner.replace("/", "\0"),
                    row["id"],
                    sys.intern(name),
                    len(inner.encode()) + 1 + len(row["text"].encode()),
                    number,
                    start,
                    length,
                )
                start += length


def read(files: Sequence[Path], entry: Entry) -> Document:
    """Return the document of an entry of `entries(files)`."""
    with open(files[entry.chunk_file], "rb") as file:
        file.seek(entry.start)
        *_, row = loads(unpacked(file.read(entry.length)))
    return Document(**row)
