"""What every task of a build shares: the folder, the config, done markers, and what a task costs.

WORK/parts/00003.pkl           a piece of the input
WORK/done/STAGE/00003.json     marker of a task: fingerprint, what it found, what it cost
WORK/documents/00003-0000...   chunks of documents
WORK/dedup/                    see near_dedup.py
WORK/sample/, tokenizer/       what the tokenizer is trained on, and itself
WORK/count/00003.npy           tokens of each document of a chunk
WORK/plan/00003.json           what is taken of a chunk
WORK/buckets/, held_out/       see buckets.py, bucket_index.py
WORK/corpus/                   becomes the finished folder
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from data_pipeline.dedup.minhash import MinHashConfig
from data_pipeline.readers.base import Part
from data_pipeline.schema import Document
from data_pipeline.tasks.chunks import Chunk, read_chunk
from data_pipeline.tasks.markers import disk_errors, read_marker, write_marker
from data_pipeline.tokenizer.encoder import Encoder
from loopcoder.config.data import DataConfig
from loopcoder.data.corpus_files import TOKENIZER
from loopcoder.errors import LoopcoderError
from loopcoder.storage.digest import file_digest, fingerprint
from loopcoder.storage.files import write_bytes
from loopcoder.storage.lock import hold

_OWNER, _TASKS = "owner", "tasks.lock"


@dataclass(frozen=True)
class Work:
    """A build; picklable, and small whatever the input."""

    folder: Path
    data: DataConfig
    """What is left to the machine (`auto`) is settled."""
    fingerprint: str
    """Hash of everything that determines the corpus."""
    domains: tuple[str, ...]
    """Domains, text before code."""
    weights: dict[str, int]
    """Tokens of each domain in lowest terms."""
    owner: str = ""
    """Names the process that drives the build; tasks of one that was killed do no more."""

    @property
    def documents(self) -> Path:
        return self.folder / "documents"

    @property
    def dedup(self) -> Path:
        return self.folder / "dedup"

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer" / TOKENIZER

    @property
    def minhash(self) -> MinHashConfig:
        """What near copies are found by; without bands, exact copies only."""
        fields = {k: v for k, v in asdict(self.data.build.near_dedup).items() if k != "enabled"}
        if not self.data.build.near_dedup.enabled:
            fields["bands"] = 0
        return MinHashConfig(**fields)

    @cached_property
    def tokenizer_hash(self) -> str:
        """xxh3-128 of tokenizer.json, once it is there."""
        return file_digest(self.tokenizer)

    # Parts and chunks

    def write_parts(self, parts: Sequence[Part]) -> None:
        """Write the pieces of the input down, each for the task that reads it."""
        folder = self.folder / "parts"
        folder.mkdir(parents=True, exist_ok=True)
        for number, part in enumerate(parts):
            write_bytes(folder / f"{number:05d}.pkl", pickle.dumps(part))

    def part(self, number: int) -> Part:
        part: Part = pickle.loads((self.folder / "parts" / f"{number:05d}.pkl").read_bytes())
        return part

    @cached_property
    def chunks(self) -> list[Chunk]:
        """The chunks of all parts, in their order; reading must be done."""
        found = json.loads((self.folder / "chunks.json").read_text(encoding="utf-8"))
        return [Chunk(*fields) for fields in found]

    def read(self, chunk: int) -> Iterator[Document]:
        """Yield the documents of a chunk."""
        yield from read_chunk(self.documents, self.chunks[chunk])

    def encoder(self) -> Encoder:
        """Return the tokenizer of the build, one thread a task."""
        return _encoder(self.tokenizer, self.tokenizer_hash, self.data.build.tokenizer_backend)

    # One build at a time

    def own(self, wait: Callable[[], None]) -> Work:
        """Take the folder over from a build that was killed, once its running tasks have ended.

        Args:
            wait: Called before waiting for them.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = replace(self, owner=f"{os.getpid()}-{time.time_ns()}")
        write_bytes(self.folder / _OWNER, mine.owner.encode())
        with hold(self.folder / _TASKS, lambda _: wait()):
            return mine

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Hold the folder while a task runs.

        Raises:
            LoopcoderError: another process drives the build by now.
        """
        with hold(self.folder / _TASKS, lambda _: None, shared=True):
            if (self.folder / _OWNER).read_text() != self.owner:
                raise LoopcoderError("the process that drove this build was killed")
            yield

    # Markers

    def marker(self, stage: str, task: int) -> Path:
        return self.folder / "done" / stage / f"{task:05d}.json"

    def made_of(self, stage: str) -> str:
        """Return the fingerprint of a stage; from the tokenizer on, it holds its hash."""
        before = stage in ("read", "sign", "match", "cluster", "sample", "tokenizer")
        return fingerprint(self.fingerprint, stage, "" if before else self.tokenizer_hash)

    def facts(self, stage: str, tasks: int) -> list[dict[str, Any]]:
        """Return what the tasks of a stage wrote into their markers.

        Raises:
            RuntimeError: one is not done.
        """
        return [self.facts_of(stage, task) for task in range(tasks)]

    def facts_of(self, stage: str, task: int) -> dict[str, Any]:
        """Return what one task of a stage wrote into its marker."""
        marker = read_marker(self.marker(stage, task), self.made_of(stage))
        if marker is None:
            raise RuntimeError(f"stage {stage}: task {task} is not done")
        return marker

    def missing(self, stage: str, tasks: int) -> list[int]:
        """Return the tasks that are still to be done."""
        made_of = self.made_of(stage)
        return [t for t in range(tasks) if read_marker(self.marker(stage, t), made_of) is None]


# probing a tokenizer takes as long as encoding some MB
@lru_cache(maxsize=1)
def _encoder(path: Path, digest: str, backend: Literal["auto", "fast", "reference"]) -> Encoder:
    return Encoder(path, backend=backend)


@dataclass(frozen=True)
class Task:
    """A stage as `execute.run_ranks` runs it: measures a task and writes its marker."""

    work: Work
    stage: str
    run: Callable[[Work, int], dict[str, Any]]

    def __call__(self, rank: int, world_size: int) -> None:
        with self.work.at_work(), disk_errors(self.work.folder):
            with measured() as cost:
                facts = self.run(self.work, rank)
            path = self.work.marker(self.stage, rank)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_marker(path, self.work.made_of(self.stage), **facts, cost=cost)


@contextlib.contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Fill in what the block costs: seconds, CPU seconds of all threads, peak memory in bytes."""
    cost: dict[str, float] = {}
    # the high-water mark is that of the process; Linux lets it be set back
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    start, cpu = time.monotonic(), time.process_time()
    yield cost
    cost["seconds"] = round(time.monotonic() - start, 3)
    cost["cpu_s"] = round(time.process_time() - cpu, 3)
    with contextlib.suppress(OSError):
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        cost["peak_rss_bytes"] = int(peak[1]) * 1024 if peak else 0
