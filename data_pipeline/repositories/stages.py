"""The stages that join the files of a repository to documents (data.build.repository).

WORK/repositories/buckets/      files by the bucket of their repository, see buckets.py
WORK/repositories/moved/00003   one byte per document of a chunk that is no copy: 1 went to a bucket
WORK/repositories/documents/    chunks of what was joined, and of files that are alone
WORK/repositories/places/       where the documents of each of these chunks come from
WORK/repositories/chunks.json   list of these chunks

Without repositories none of the stages has a task. What comes after them reads chunks.py.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from data_pipeline.dedup.stages import kept
from data_pipeline.readers.ingest import Read
from data_pipeline.repositories.advice import lone_files, no_repository
from data_pipeline.repositories.buckets import Buckets, Entry, bucket_file, entries, read
from data_pipeline.repositories.layout import File, join, single
from data_pipeline.repositories.names import membership
from data_pipeline.schema import Document, Tally
from data_pipeline.tasks import places
from data_pipeline.tasks.chunks import Chunk, ChunkWriter, read_chunk, write_chunk_list
from data_pipeline.tasks.work import Output, Result, Work, write_sealed

STAGE = "repositories"
"""Name of the tally."""


@dataclass(frozen=True)
class Scattered(Result):
    """What of a chunk went to the buckets."""

    stage: ClassVar[str] = "scatter"
    tally: Tally
    moved_bytes: int
    """UTF-8 of what went."""
    code: dict[str, int] = field(default_factory=dict)
    """Code documents of each source."""
    lone: dict[str, int] = field(default_factory=dict)
    """Those of them that belong to no repository."""


@dataclass(frozen=True)
class Joined(Result):
    """What a bucket became."""

    stage: ClassVar[str] = "join"
    tally: Tally
    chunks: list[Chunk]


@dataclass(frozen=True)
class JoinedNumbered(Result):
    """All buckets together."""

    stage: ClassVar[str] = "number_joined"
    counts: dict[str, int]
    """Of the whole corpus; the notes of the tallies."""
    warnings: list[str] = field(default_factory=list)
    """A line for each source of which hardly a file belongs to a repository."""


def is_on(work: Work) -> bool:
    """Tell whether files are joined."""
    return work.data.build.repository.enabled


def num_buckets(work: Work) -> int:
    """Return how many buckets there are; each is as large as a part of the input on average."""
    code = sum(chunk.text_bytes.get("code", 0) for chunk in work.chunks)
    return max(1, -(-code // work.data.build.part_bytes)) if is_on(work) else 0


def scatter(work: Work, chunk: int) -> Output:
    """Send the files of repositories among the documents of a chunk to their buckets."""
    tally = Tally(STAGE)
    buckets = Buckets(_buckets(work), chunk, num_buckets(work))
    moved = bytearray()
    moved_bytes = 0
    code: Counter[str] = Counter()
    lone: Counter[str] = Counter()
    for document in kept(work, chunk, Tally("dedup")):
        member = membership(document, work.data.build.repository.depth)
        moved.append(member is not None)
        if document.domain == "code":
            tally.rows_in += 1
            tally.rows_out += 1
            tally.notes["files_without_repository"] += member is None
            code[document.source] += 1
            lone[document.source] += member is None
        if member is not None:
            moved_bytes += len(document.text.encode())
            buckets.add(document, member)
    moved_file(work, chunk).parent.mkdir(parents=True, exist_ok=True)
    write_sealed(moved_file(work, chunk), bytes(moved))
    return Output(
        Scattered(tally, moved_bytes, dict(code), dict(lone)),
        hashed=buckets.finish(),
        bytes_in=work.text_bytes(chunk),
    )


def join_bucket(work: Work, bucket: int) -> Output:
    """Write the documents of a bucket's repositories."""
    files = []
    for number, done in enumerate(work.all_done(Scattered)):
        path = bucket_file(_buckets(work), bucket, number)
        if str(path.relative_to(work.folder)) in done.files:
            files.append(done.file(path))
    tally = Tally(STAGE)
    size = 0
    with ChunkWriter(documents_folder(work), bucket, work.data.build.part_bytes) as out:
        found = sorted(entries(files))
        tally.notes["repositories"] = len({entry[:2] for entry in found})
        for group in _groups(found, work.data.build.repository.max_bytes):
            size += out.add(_document(group, files, tally))
    written = [documents_folder(work) / chunk.name for chunk in out.chunks]
    if work.data.build.list_drops:
        for chunk in out.chunks:
            written += _write_places(work, chunk)
    return Output(Joined(tally, out.chunks), files=written, bytes_in=size)


def number_joined(work: Work, _: int) -> Output:
    """List the chunks of all buckets.

    Raises:
        InputError: no file belongs to a repository.
    """
    chunks: list[Chunk] = []
    counts: Counter[str] = Counter()
    code: Counter[str] = Counter()
    lone: Counter[str] = Counter()
    for scattered in work.all_done(Scattered):
        code.update(scattered.result.code)
        lone.update(scattered.result.lone)
        counts.update(scattered.result.tally.notes)
    for joined in work.all_done(Joined):
        counts.update(joined.result.tally.notes)
        chunks += joined.result.chunks
    lacking: dict[str, dict[str, list[str]]] = {}
    for read_part in work.all_done(Read):
        found = lacking.setdefault(read_part.result.source, {})
        lacking[read_part.result.source] = read_part.result.tallies[0].lacking | found
    if not chunks:
        raise no_repository(work.data.build, lacking)
    write_chunk_list(work.joined_list, chunks)
    warnings = lone_files(work.data.build, code, lone)
    return Output(JoinedNumbered(dict(counts), warnings), files=[work.joined_list])


def moved_file(work: Work, chunk: int) -> Path:
    """Return where it stands which documents of a chunk went to the buckets; sealed."""
    return work.repositories / "moved" / f"{chunk:05d}"


def documents_folder(work: Work) -> Path:
    """Return the folder of the chunks."""
    return work.repositories / "documents"


def bucket_of(chunk: Chunk) -> int:
    """Return the bucket whose documents a chunk has."""
    return int(chunk.name.partition("-")[0])


def places_folder(work: Work, chunk: Chunk) -> Path:
    """Return the folder with the places of a chunk's documents."""
    return work.repositories / "places" / chunk.name.partition(".")[0]


def _buckets(work: Work) -> Path:
    return work.repositories / "buckets"


def _groups(found: Iterable[Entry], max_bytes: int) -> Iterator[list[Entry]]:
    """Yield the files of each document."""
    for _, group in itertools.groupby(found, key=lambda entry: entry.group):
        files: list[Entry] = []
        room = 0
        for entry in group:
            if files and entry.num_bytes > room:
                yield files
                files = []
            if not files:
                room = max_bytes - len(entry.name.encode()) - 1
            files.append(entry)
            room -= entry.num_bytes
        yield files


def _document(group: list[Entry], files: list[Path], tally: Tally) -> Document:
    """Make the document of some files; one alone stays as it is."""
    if len(group) == 1:
        tally.notes["files_left_single"] += 1
        return single(group[0].key, read(files, group[0]))
    tally.notes["documents"] += 1
    tally.notes["files_joined"] += len(group)
    parts = [File(entry.path, read(files, entry)) for entry in group]
    return join(group[0].key, group[0].name, parts)


def _write_places(work: Work, chunk: Chunk) -> list[Path]:
    folder = places_folder(work, chunk)
    folder.mkdir(parents=True, exist_ok=True)
    for _ in places.written(read_chunk(documents_folder(work), chunk), folder):
        pass
    return sorted(folder.iterdir())
