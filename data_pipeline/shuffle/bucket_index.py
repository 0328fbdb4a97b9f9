"""Index from each bucket to the files that hold its documents.

Every chunk wrote a file to every bucket, and its marker names them. Who reads a bucket needs its
files from all chunks; to read all markers for that would take more than the memory of a task in a
large corpus: thousands of chunks times thousands of buckets. So they are read once.

    FOLDER/index/00003.jsonl   a line per file of bucket 3: chunk, size and hash, its kinds
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.shuffle.bucket_reader import BucketFile
from data_pipeline.shuffle.buckets import Bucketed, bucket_file
from loopcoder.data.labels import Label
from loopcoder.storage.files import FileEntry

_BUFFER_BYTES = 1 << 25
"""Of lines that are not written yet."""


@dataclass(frozen=True)
class Indexed:
    """What all buckets of a folder hold."""

    kinds: list[Label]
    """Of documents, in the order of the kinds in the index."""
    tokens: dict[str, list[int]]
    """Tokens of every bucket, by domain."""


def index_file(folder: Path, bucket: int) -> Path:
    """Return where the files of a bucket are listed."""
    return folder / "index" / f"{bucket:05}.jsonl"


def write_index(
    folder: Path,
    chunks: Iterable[tuple[Bucketed, Callable[[Path], FileEntry]]],
    domains: Iterable[str],
    num_buckets: int,
) -> Indexed:
    """Write the list of every bucket's files; the same bytes however often it is begun.

    Args:
        folder: Of the buckets.
        chunks: What `to_buckets` said of each chunk, in their order, and the entry of each file.
        domains: Of the corpus.
        num_buckets: Of the corpus.
    """
    numbers: dict[Label, int] = {}
    tokens = {domain: [0] * num_buckets for domain in domains}
    shutil.rmtree(folder / "index", ignore_errors=True)
    (folder / "index").mkdir(parents=True)
    for bucket in range(num_buckets):
        index_file(folder, bucket).touch()
    waiting: dict[int, list[str]] = {}
    size = 0

    def flush() -> None:
        for bucket, lines in waiting.items():
            with open(index_file(folder, bucket), "a", encoding="utf-8") as file:
                file.writelines(lines)
        waiting.clear()

    for chunk, (bucketed, entry_of) in enumerate(chunks):
        kinds = [numbers.setdefault(kind, len(numbers)) for kind in bucketed.kinds]
        for bucket, of_domain in bucketed.tokens.items():
            entry = entry_of(bucket_file(folder, bucket, chunk))
            line = json.dumps([chunk, entry, kinds]) + "\n"
            waiting.setdefault(bucket, []).append(line)
            size += len(line)
            for domain, count in of_domain.items():
                tokens[domain][bucket] += count
        if size > _BUFFER_BYTES:
            flush()
            size = 0
    flush()
    return Indexed(list(numbers), tokens)


def labels_of(domains: Sequence[str], *indexed: Indexed) -> list[Label]:
    """Return the labels of a corpus in an order that does not depend on its chunks: by domain,
    language and source."""
    found = {label for folder in indexed for label in folder.kinds}
    return sorted(
        found,
        key=lambda label: (domains.index(label.domain), label.language or "", label.source or ""),
    )


def files_of(folder: Path, bucket: int) -> list[BucketFile]:
    """Return the files of a bucket."""
    found = []
    for line in index_file(folder, bucket).read_text(encoding="utf-8").splitlines():
        chunk, entry, kinds = json.loads(line)
        found.append(BucketFile(bucket_file(folder, bucket, chunk), entry, kinds))
    return found
