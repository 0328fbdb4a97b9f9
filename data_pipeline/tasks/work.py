"""The unit of work of a build: a task is (stage, index), and its marker says that it is done.

A stage is a function of (work, index) that writes files below the work folder and returns an
`Output` that names them. `Task` measures it, syncs and hashes the files, and writes the marker
last. A task that was killed left no marker: it is done again, over what is there. The names of
files are fixed by stage and index, and every stage gives the same bytes whenever it runs.

WORK/owner, tasks.lock          who drives the build; held by every task at work
WORK/done/STAGE/00003.json      marker: fingerprint, result, files with sizes and hashes, cost
WORK/parts/00003                a part of the input
WORK/documents/00003-0000...    chunks of documents, and chunks.json, their list
WORK/dedup/                     see dedup/stages.py
WORK/repositories/              see repositories/stages.py
WORK/sample/, tokenizer/        what the tokenizer is trained on, and itself
WORK/count/00003.npy            tokens of each document of a chunk
WORK/plan/00003.json            what is taken of a chunk
WORK/buckets/, held_out/        documents by bucket, and the index of each: see shuffle/stages.py
WORK/frequencies/               how often each token is in every shard
WORK/corpus/                    becomes the finished folder
WORK/logs/STAGE/                what its tasks logged
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import xxhash
from pydantic import TypeAdapter

from data_pipeline.schema import Document
from data_pipeline.tasks.chunks import Chunk, read_chunk, read_chunk_list
from loopcoder.config.data import DataConfig
from loopcoder.data.places import TOKENIZER
from loopcoder.errors import DiskFull, InputError, LoopcoderError
from loopcoder.storage.digest import fingerprint
from loopcoder.storage.disk import full_disk_raises
from loopcoder.storage.files import (
    FileEntry,
    fault_of,
    sync,
    sync_folder,
    synced_entry,
    write_bytes,
    write_json,
)
from loopcoder.storage.lock import hold

WORK_FORMAT = 4
"""Of the work folder; raising it refuses to continue a build that an older version began."""

_OWNER, TASKS_LOCK = "owner", "tasks.lock"


@dataclass(frozen=True)
class Result:
    """What a task tells those after it: a dataclass of what JSON can say."""

    stage: ClassVar[str]
    """Name of the stage whose tasks return it."""

    @classmethod
    @cache
    def as_json(cls) -> TypeAdapter[Any]:
        """Return what turns it into JSON and back, and checks the types of all fields."""
        return TypeAdapter(cls)


@dataclass(frozen=True)
class Output:
    """What a stage's function returns."""

    result: Result
    files: Sequence[Path] = ()
    """Files that were written; `Task` syncs and hashes them."""
    hashed: Mapping[Path, FileEntry] = field(default_factory=dict)
    """Files whose hash is known from writing them; `Task` syncs them."""
    bytes_in: int = 0
    """Size of the input, for the rate."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Documents and files that the corpus loses here, by reason, as the terminal tells them."""
    faults: Sequence[str] = ()
    """What is wrong with the input and where, a line for each reason, for the terminal."""


@dataclass(frozen=True)
class Cost:
    """What a task took."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    """Of all threads."""
    peak_rss_bytes: int = 0
    bytes_in: int = 0


@dataclass(frozen=True)
class Done[R: Result]:
    """A task that is done: its marker."""

    folder: Path
    """The work folder."""
    result: R
    files: Mapping[str, FileEntry]
    """By their paths below the work folder."""
    cost: Cost
    left_out: Mapping[str, int]
    faults: Sequence[str] = ()

    def file(self, path: Path, *, contents: bool = True) -> Path:
        """Return a file of the task after comparing it with the marker.

        Args:
            path: The file.
            contents: Compare the hash, not the size alone.

        Raises:
            InputError: it is missing or was changed.
        """
        fact = fault_of(path, self.entry(path), contents=contents)
        if fact is not None:
            raise damaged(self.folder, fact)
        return path

    def entry(self, path: Path) -> FileEntry:
        """Return what the marker says of a file."""
        return self.files[str(path.relative_to(self.folder))]


@dataclass(frozen=True)
class Work:
    """A build; picklable, and small whatever the input."""

    folder: Path
    data: DataConfig
    """What is left to the machine (`auto`) is decided."""
    fingerprint: str
    """Hash of everything that determines the corpus."""
    domains: tuple[str, ...]
    """Domains, text before code."""
    weights: dict[str, int]
    """Tokens of each domain in lowest terms."""
    owner: str = ""
    """Names the process that drives the build; tasks of one that was killed do no more."""

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer" / TOKENIZER

    # Chunks, once all parts are read

    @property
    def documents(self) -> Path:
        return self.folder / "documents"

    @property
    def chunk_list(self) -> Path:
        return self.documents / "chunks.json"

    @cached_property
    def chunks(self) -> list[Chunk]:
        """The chunks of all parts, in their order."""
        return read_chunk_list(self.chunk_list)

    @property
    def repositories(self) -> Path:
        return self.folder / "repositories"

    @property
    def joined_list(self) -> Path:
        return self.repositories / "chunks.json"

    @cached_property
    def joined(self) -> list[Chunk]:
        """The chunks of documents of repositories, once all files are joined; see
        repositories/chunks.py."""
        is_on = self.data.build.repository.enabled
        return read_chunk_list(self.joined_list) if is_on else []

    def read(self, chunk: int) -> Iterator[Document]:
        """Yield the documents of a chunk."""
        yield from read_chunk(self.documents, self.chunks[chunk])

    def text_bytes(self, chunk: int) -> int:
        """Return the UTF-8 bytes of a chunk."""
        return sum(self.chunks[chunk].text_bytes.values())

    # One build at a time

    def take_over(self, wait: Callable[[], None]) -> Work:
        """Take the folder over from a build that was killed, once its running tasks have ended.

        Args:
            wait: Called before waiting for them.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = replace(self, owner=f"{os.getpid()}-{time.time_ns()}")
        write_bytes(self.folder / _OWNER, mine.owner.encode())
        with hold(self.folder / TASKS_LOCK, lambda _: wait()):
            return mine

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the folder while a task runs.

        Raises:
            LoopcoderError: another process drives the build by now.
        """
        with hold(self.folder / TASKS_LOCK, lambda _: None, shared=True):
            if (self.folder / _OWNER).read_text() != self.owner:
                raise LoopcoderError.of(
                    f"this task belongs to a build in {self.folder} whose process was killed",
                    "another process drives the build now and does the task itself",
                    "nothing, if `loopcoder data` runs; else start the same command again",
                )
            yield

    # Markers

    def marker(self, stage: str, index: int) -> Path:
        return self.folder / "done" / stage / f"{index:05d}.json"

    def fingerprint_of(self, stage: str) -> str:
        """Return the hash of everything that determines the results of a stage."""
        return fingerprint(WORK_FORMAT, self.fingerprint, stage)

    def missing(self, stage: str, tasks: int) -> list[int]:
        """Return the tasks of a stage that are still to be done; no marker is read."""
        folder = self.marker(stage, 0).parent
        done = set(folder.iterdir()) if folder.exists() else set()
        return [task for task in range(tasks) if self.marker(stage, task) not in done]

    def done[R: Result](self, kind: type[R], index: int = 0) -> Done[R]:
        """Return the marker of a task.

        Args:
            kind: What the tasks of the stage return; names the stage.
            index: Of the task.

        Raises:
            InputError: the marker is missing, was altered, or is of another version.
        """
        path = self.marker(kind.stage, index)
        try:
            marker = json.loads(path.read_text(encoding="utf-8"))
            if marker["fingerprint"] != self.fingerprint_of(kind.stage):
                raise foreign(self.folder, f"{path} has the fingerprint {marker['fingerprint']}")
            result = kind.as_json().validate_python(marker["result"])
            cost = Cost(**marker["cost"])
            faults = marker.get("faults", [])
            return Done(self.folder, result, marker["files"], cost, marker["left_out"], faults)
        except (OSError, ValueError, KeyError, TypeError) as e:  # pydantic's is a ValueError
            raise damaged(self.folder, f"cannot read {path}: {e!r}") from e

    def result[R: Result](self, kind: type[R], index: int = 0) -> R:
        """Return what a task told, see `done`."""
        return self.done(kind, index).result

    def all_done[R: Result](self, kind: type[R]) -> Iterator[Done[R]]:
        """Yield the markers of a stage that is complete, in the order of its tasks."""
        folder = self.marker(kind.stage, 0).parent
        for index in range(len(list(folder.glob("*.json")))):
            yield self.done(kind, index)

    def refuse_other_format(self) -> None:
        """Refuse a folder that another version of the pipeline began.

        Raises:
            InputError: so it is.
        """
        # the list of the parts is the first marker of a build
        if self.missing("parts", 1) and any((self.folder / "done").glob("*/*.json")):
            raise foreign(self.folder, f"{self.folder} has no {self.marker('parts', 0)}")


@dataclass(frozen=True)
class Task:
    """A stage as `execute.run_tasks` runs it: does a task and writes its marker."""

    work: Work
    kind: type[Result]
    """What the tasks of the stage return."""
    run: Callable[[Work, int], Output]

    def __call__(self, index: int) -> None:
        work = self.work
        with work.hold(), disk_errors(work.folder):
            with measured() as spent:
                output = self.run(work, index)
                files = dict(output.hashed) | {path: synced_entry(path) for path in output.files}
                for path in output.hashed:
                    with open(path, "rb") as file:
                        sync(file)
                _sync_folders(work.folder, files)
            path = work.marker(self.kind.stage, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {
                "fingerprint": work.fingerprint_of(self.kind.stage),
                "result": self.kind.as_json().dump_python(output.result, mode="json"),
                "files": {str(p.relative_to(work.folder)): entry for p, entry in files.items()},
                "cost": spent | {"bytes_in": output.bytes_in},
                "left_out": dict(output.left_out),
                "faults": list(output.faults),
            }
            write_json(path, content)


def _sync_folders(root: Path, files: Mapping[Path, FileEntry]) -> None:
    """Make the names of files survive a power cut, and those of new folders."""
    folders = {folder for path in files for folder in path.parents if folder.is_relative_to(root)}
    for folder in folders:
        sync_folder(folder)


# Files that one task writes, one for each of many other tasks. They begin with their own hash: a
# marker that named them all would have to be read by every one of those tasks.


def write_sealed(path: Path, content: bytes) -> None:
    """Write a whole file that begins with the hash of its content."""
    write_bytes(path, xxhash.xxh3_128_digest(content) + content)


def read_sealed(path: Path, folder: Path) -> bytes:
    """Return the content of a file that `write_sealed` wrote.

    Args:
        path: The file.
        folder: The work folder, for the error.

    Raises:
        InputError: it is missing or was changed.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise damaged(folder, f"{path} cannot be read: {e.strerror or e}") from e
    if data[:16] != xxhash.xxh3_128_digest(data[16:]):
        raise damaged(folder, f"{path} ({len(data):,} bytes) has other content than was written")
    return data[16:]


def damaged(folder: Path, fact: str) -> InputError:
    """Return the error that something in a work folder is not as it was written."""
    return InputError.of(
        fact,
        "it was changed after the task that wrote it was done",
        f"delete {folder} and start the same command again",
    )


def foreign(folder: Path, fact: str) -> InputError:
    """Return the error that a work folder is of another version."""
    return InputError.of(
        fact,
        "the build in this folder was begun by another version of the pipeline or of its packages; "
        "what the two make must not mix",
        f"delete {folder} and start the same command again",
    )


def disk_errors(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Turn a full disk into an error for the user; what was begun is done again by the next run."""
    return full_disk_raises(
        folder,
        lambda fact: DiskFull.of(
            fact,
            "the stages of a corpus need up to twice the size of its documents beside it",
            "free some space and start the same command again: it continues where it was",
        ),
    )


@contextlib.contextmanager
def measured() -> Iterator[dict[str, Any]]:
    """Fill in what the block costs, as the fields of `Cost`."""
    spent: dict[str, Any] = {}
    # the high-water mark is that of the process; Linux lets it be set back
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    start, cpu = time.monotonic(), time.process_time()
    yield spent
    spent["seconds"] = round(time.monotonic() - start, 3)
    spent["cpu_s"] = round(time.process_time() - cpu, 3)
    with contextlib.suppress(OSError):
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        spent["peak_rss_bytes"] = int(peak[1]) * 1024 if peak else 0
