"""Reading the input: list its parts, ingest, clean, decontaminate, label and store each in chunks,
and number the chunks.

The documents of a part pass through five steps in one task, so that they are written once; each
step keeps its own tally.
"""

from __future__ import annotations

import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from data_pipeline.decontam.match import decontaminate, open_index
from data_pipeline.filters import clean
from data_pipeline.langid.classifier import LanguageClassifier, label, label_code
from data_pipeline.readers.base import Part, Source
from data_pipeline.readers.conversations import said
from data_pipeline.readers.pickled import unpickle_part
from data_pipeline.readers.sample import DEFAULT_DOMAIN_BYTES, MIN_DOMAIN_BYTES
from data_pipeline.readers.verdict import described, judge
from data_pipeline.schema import NAMED_FAULTS, Document, Tally
from data_pipeline.tasks.chunks import Chunk, ChunkWriter, write_chunk_list
from data_pipeline.tasks.dropped import DropList, Dropped
from data_pipeline.tasks.work import Output, Result, Work, foreign, read_sealed, write_sealed
from loopcoder.config.data import DataConfig
from loopcoder.config.mixture import without
from loopcoder.errors import InputError, LoopcoderError, Problem
from loopcoder.storage.digest import fingerprint
from loopcoder.storage.unpickle import RefusedPickle

TALLIES = ("ingest", "select", "clean", "decontaminate", "language")
"""The steps, in the order in which documents meet them."""
CHAT_TALLIES = ("ingest", "select", "decontaminate")
"""Those of conversations."""

_Step = Callable[[Iterable[Document], Tally], Iterator[Document]]
"""What a step makes of documents; it counts them."""


@dataclass(frozen=True)
class Listed(Result):
    """The input, cut into parts."""

    stage: ClassVar[str] = "parts"
    parts: int
    size: int
    """Bytes that will be read, as far as is known."""
    sources: list[dict[str, Any]]
    """What the manifest says of each source."""


@dataclass(frozen=True)
class Read(Result):
    """What became of a part."""

    stage: ClassVar[str] = "read"
    source: str
    files: int
    tallies: list[Tally]
    """Of each of TALLIES, or CHAT_TALLIES."""
    chunks: list[Chunk]
    text_chars: dict[str, int]
    """Characters that each step handed on."""
    cpu_s: dict[str, float]
    """CPU time of each step, and of storing."""
    bytes_on_disk: int
    """Of the part, packed as it lies there; 0 where that is not known."""
    packages: dict[str, dict[str, int]]
    """By package, what was left out of it by reason."""
    dropped: Dropped


@dataclass(frozen=True)
class Gathered(Result):
    """All parts together."""

    stage: ClassVar[str] = "gather"
    chunks: int


def list_parts(work: Work, _: int, sources: Sequence[Source]) -> Output:
    """Write the parts of the input down, each for the task that reads it."""
    parts = [part for source in sources for part in source.parts(work.data.build.part_bytes)]
    _part_path(work, 0).parent.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts):
        write_sealed(_part_path(work, number), pickle.dumps(part))
    size = sum(part.size for part in parts)
    return Output(Listed(len(parts), size, [_described(source) for source in sources]))


def read_part(work: Work, number: int) -> Output:
    """Read one part of the input and store its documents."""
    part = _load_part(work, number)
    drops = DropList(
        work,
        Read.stage,
        number,
        source=part.name,
        package_of=part.package_of,
        place_of=part.place_of,
    )
    with drops:
        result = _read(work, number, part, drops)
    return Output(
        replace(result, dropped=drops.summary()),
        files=[*(work.documents / chunk.name for chunk in result.chunks), *drops.files],
        bytes_in=result.tallies[0].bytes_in or part.size,
        left_out=_left_out(result.tallies),
    )


def _read(work: Work, number: int, part: Part, drops: DropList) -> Read:
    """Send the documents of a part through all steps, and store them."""
    named = _steps(work, part)
    tallies = [drops.tally(name) for name in ("ingest", *named)]
    # `documents` fills in the tally of the reader itself
    documents = part.documents(tallies[0])
    steps = [_Metered(documents)]
    for step, tally in zip(named.values(), tallies[1:], strict=True):
        steps.append(_Metered(step(steps[-1], tally)))
    start = time.thread_time()
    with ChunkWriter(work.documents, number, work.data.build.part_bytes) as out:
        for document in steps[-1]:
            out.add(document)
    total = time.thread_time() - start
    documents.close()
    for tally in tallies:
        tally.check()
    _check_chain(tallies, sum(c.documents for c in out.chunks))
    before = [0.0, *(step.cpu_s for step in steps)]
    own = [step.cpu_s - earlier for step, earlier in zip(steps, before, strict=False)]
    names = [tally.stage for tally in tallies]
    return Read(
        source=part.name,
        files=part.num_files,
        tallies=tallies,
        chunks=out.chunks,
        text_chars={n: step.text_chars for n, step in zip(names, steps, strict=True)},
        cpu_s=dict(zip((*names, "store"), [*own, total - steps[-1].cpu_s], strict=True)),
        bytes_on_disk=part.size,
        packages={package: dict(counts) for package, counts in drops.packages.items()},
        dropped=Dropped(),
    )


def _steps(work: Work, part: Part) -> dict[str, _Step]:
    """Return what documents go through after they are read, in their order."""
    build = work.data.build

    def selected(documents: Iterable[Document], tally: Tally) -> Iterator[Document]:
        return select(documents, part, work.domains, tally)

    def cleaned(documents: Iterable[Document], tally: Tally) -> Iterator[Document]:
        return _survived(lambda found: clean(found, build.filters, tally), documents, tally)

    def decontaminated(documents: Iterable[Document], tally: Tally) -> Iterator[Document]:
        if not build.decontaminate.benchmarks:
            return _passed(documents, tally)
        index = open_index(build.decontaminate)
        if build.is_chat:
            return decontaminate(documents, index, tally, said)
        return decontaminate(documents, index, tally)

    def labelled(documents: Iterable[Document], tally: Tally) -> Iterator[Document]:
        return _survived(lambda found: _labelled(found, work.data, tally), documents, tally)

    if build.is_chat:
        return dict(zip(CHAT_TALLIES[1:], (selected, decontaminated), strict=True))
    return dict(zip(TALLIES[1:], (selected, cleaned, decontaminated, labelled), strict=True))


def gather(work: Work, _: int) -> Output:
    """Number the chunks; fail if no document of a domain survived, or too much was damaged."""
    ingested: dict[str, Tally] = {}
    reasons: Counter[str] = Counter()
    chunks: list[Chunk] = []
    for done in work.all_done(Read):
        read = done.result
        ingested.setdefault(read.source, Tally("ingest")).add(read.tallies[0])
        for tally in read.tallies:
            reasons.update(tally.drops)
            reasons.update(tally.file_drops)
        chunks += read.chunks
    faults: list[str] = []
    problems: list[Problem] = []
    for source, tally in ingested.items():
        try:
            judge(tally, source)
        except InputError as error:
            problems += error.problems
        faults += described(tally.worst(), NAMED_FAULTS)
    if problems:
        raise InputError(problems)
    text_bytes: Counter[str] = Counter()
    for chunk in chunks:
        text_bytes.update(chunk.text_bytes)
    _check_domains(
        work, text_bytes, ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
    )
    write_chunk_list(work.chunk_list, chunks)
    return Output(Gathered(len(chunks)), files=[work.chunk_list], faults=faults)


def _part_path(work: Work, number: int) -> Path:
    return work.folder / "parts" / f"{number:05d}"


def _load_part(work: Work, number: int) -> Part:
    path = _part_path(work, number)
    data = read_sealed(path, work.folder)
    try:
        part: Part = unpickle_part(data, work.data.build.sources)
    except RefusedPickle as error:
        raise InputError.of(
            f"{path} wants to run {error}",
            "a part of the input holds files and settings; whoever altered this one wants code to "
            "be run where it is read. Nothing of it was run",
            f"delete {work.folder} and start the same command again",
        ) from error
    except Exception as error:  # a class that is no longer there, or has other fields
        raise foreign(work.folder, f"{path} cannot be read: {error!r}") from error
    return part


def input_hash(source: Source) -> str:
    """Return the hash of what determines the documents of a source, 32 hex digits."""
    return fingerprint(source.identity)


def _described(source: Source) -> dict[str, Any]:
    """Return what the manifest says of a source."""
    config = source.config
    return {
        "name": source.name,
        "kind": config.kind,
        "path": config.path,
        "domain": config.domain,
        "max_documents": config.max_documents,
        "max_bytes": config.max_bytes,
        "licence": config.licence,
        "input_xxh3_128": input_hash(source),
        "inputs": len(source.identity),
        **source.provenance,
    }


def _left_out(tallies: Iterable[Tally]) -> Counter[str]:
    """Return the rows and files that were dropped, by reason."""
    counts: Counter[str] = Counter()
    for tally in tallies:
        counts.update(tally.drops)
        counts.update({f"files {reason}": n for reason, n in tally.file_drops.items()})
    return counts


def select(
    documents: Iterable[Document], part: Part, domains: tuple[str, ...], tally: Tally
) -> Iterator[Document]:
    """Yield the documents of the mixture's domains, up to the limits of their source."""
    config = part.config
    limit = config.max_bytes
    if limit is None and config.kind == "sample":
        limit = DEFAULT_DOMAIN_BYTES
    room = dict.fromkeys(domains, limit)
    full: set[str] = set()
    for document in documents:
        tally.rows_in += 1
        left = room.get(document.domain)
        size = len(document.text.encode()) if left is not None else 0
        if document.domain not in room:
            tally.drop("domain_not_in_mixture", document.place)
        elif document.domain in full or (left is not None and size > left):
            full.add(document.domain)
            tally.drop("domain_full", document.place)
        else:
            if left is not None:
                room[document.domain] = left - size
            tally.rows_out += 1
            yield document
        if (
            full and full >= part.domains.intersection(domains)
        ) or tally.rows_out == config.max_documents:
            return


def _labelled(documents: Iterable[Document], data: DataConfig, tally: Tally) -> Iterator[Document]:
    """Yield the documents with their languages; code of unknown language as the config says."""
    model = (
        LanguageClassifier.load(data.build.language_classifier)
        if data.build.language_classifier
        else None
    )
    if data.build.unknown_language == "drop":
        yield from label_code(documents, tally, model, data.build.language_confidence)
        return
    for document in documents:
        tally.rows_in += 1
        tally.rows_out += 1
        if document.domain == "code":
            language, teller = label(document, model, data.build.language_confidence)
            tally.notes[f"language_by_{teller}"] += 1
            document = replace(document, language=language)  # noqa: PLW2901
        yield document


class _Upstream:
    """Documents of the step before, which knows whether an error is of that step."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents = iter(documents)
        self.failed = False
        self.last: Document | None = None
        """The document that was handed on."""

    def __iter__(self) -> Iterator[Document]:
        return self

    def __next__(self) -> Document:
        try:
            self.last = next(self._documents)
            return self.last
        except StopIteration:
            raise
        except BaseException:
            self.failed = True
            raise


def _survived(
    step: Callable[[Iterable[Document]], Iterator[Document]],
    documents: Iterable[Document],
    tally: Tally,
) -> Iterator[Document]:
    """Run a step that judges each document alone; one that breaks it is dropped as `broke_...`."""
    upstream = _Upstream(documents)
    while True:
        try:
            yield from step(upstream)
        except (LoopcoderError, OSError):
            raise
        except Exception as error:
            if upstream.failed or tally.rows_in != tally.rows_out + tally.drops.total() + 1:
                raise
            assert upstream.last is not None
            tally.drop(f"broke_{type(error).__name__}", upstream.last.place)
        else:
            return


def _passed(documents: Iterable[Document], tally: Tally) -> Iterator[Document]:
    for document in documents:
        tally.rows_in += 1
        tally.rows_out += 1
        yield document


def _check_chain(tallies: list[Tally], stored: int) -> None:
    """Raise RuntimeError unless every step takes in what the one before it hands on."""
    handed = [tally.rows_out for tally in tallies]
    taken = [*(tally.rows_in for tally in tallies[1:]), stored]
    if handed != taken:
        raise RuntimeError(f"steps hand on {handed} rows, but take in {taken}")


class _Metered:
    """Documents, with the CPU time until each of them is there, and their characters."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents = iter(documents)
        self.cpu_s = 0.0
        self.text_chars = 0

    def __iter__(self) -> Iterator[Document]:
        return self

    def __next__(self) -> Document:
        start = time.thread_time()
        try:
            document = next(self._documents)
        finally:
            self.cpu_s += time.thread_time() - start
        self.text_chars += len(document.text)
        return document


def _check_domains(work: Work, text_bytes: Mapping[str, int], reasons: str) -> None:
    """Raise InputError for every domain without a document, or with too little of a sample."""
    sources = work.data.build.sources
    limits = [
        f"a larger data.build.sources.{index}.{name}"
        for index, source in enumerate(sources)
        for name in ("max_documents", "max_bytes")
        if getattr(source, name)
    ]
    wanted = 1
    if all(source.kind == "sample" for source in sources):
        wanted = min([MIN_DOMAIN_BYTES, *(s.max_bytes // 2 for s in sources if s.max_bytes)])
    problems = []
    for domain in work.domains:
        size = text_bytes.get(domain, 0)
        fixes = [*limits, f"add a source with {domain}"]
        fixes += [] if work.data.build.is_chat else ["loosen data.build.filters"]
        fixes += [rest] if (rest := without(work.data.mixture, domain)) else []
        if not size:
            problems.append(
                Problem(
                    f"domain {domain!r} of the corpus has no documents "
                    f"({reasons or 'nothing was read'})",
                    "the mixture takes tokens from every domain that it names",
                    ", or ".join(fixes),
                )
            )
        elif size < wanted:
            problems.append(
                Problem(
                    f"data=sample found only {size:,} bytes of {domain} here",
                    f"less than {wanted:,} bytes are too few to learn from",
                    "data=files data.path=FOLDER with your own documents",
                )
            )
    if problems:
        raise InputError(problems)
