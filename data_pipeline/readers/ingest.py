"""The first pass over the input: ingest, clean, decontaminate, label, and store in chunks.

Four stages in one pass, so that documents are written once; each keeps its own tally.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from data_pipeline.decontam.match import decontaminate, open_index
from data_pipeline.filters import clean
from data_pipeline.langid.classifier import LanguageClassifier, label, label_code
from data_pipeline.readers.base import Part
from data_pipeline.readers.sample import DEFAULT_DOMAIN_BYTES, MIN_DOMAIN_BYTES
from data_pipeline.schema import Document, Tally
from data_pipeline.tasks.chunks import ChunkWriter
from data_pipeline.tasks.work import Work
from loopcoder.config.data import DataConfig
from loopcoder.errors import InputError, Problem

STAGES = ("ingest", "select", "clean", "decontaminate", "language")
"""Tallies of the pass, in the order in which documents meet them."""


def read_part(work: Work, number: int) -> dict[str, Any]:
    """Read one part of the input; return tallies, chunks and the CPU time of each stage."""
    part = work.part(number)
    data = work.data
    tallies = {name: Tally(name) for name in STAGES}
    # `documents` fills in the tally of the reader itself
    read = _Metered(part.documents(tallies["ingest"]))
    selected = _Metered(select(read, part, work.domains, tallies["select"]))
    cleaned = _Metered(clean(selected, data.build.filters, tallies["clean"]))
    found: _Metered = cleaned
    if data.build.decontaminate.benchmarks:
        index = open_index(data.build.decontaminate)
        found = _Metered(decontaminate(cleaned, index, tallies["decontaminate"]))
    else:
        found = _Metered(_passed(cleaned, tallies["decontaminate"]))
    labelled = _Metered(_labelled(found, data, tallies["language"]))
    start = time.thread_time()
    with ChunkWriter(work.documents, number, data.build.part_bytes) as out:
        for document in labelled:
            out.add(document)
    total = time.thread_time() - start
    for tally in tallies.values():
        tally.check()
    _check_chain([tallies[name] for name in STAGES], sum(c.documents for c in out.chunks))
    passes = [read, selected, cleaned, found, labelled]
    before = [0.0, *(p.cpu_s for p in passes)]
    own = [p.cpu_s - earlier for p, earlier in zip(passes, before, strict=False)]
    return {
        "source": part.name,
        "files": part.num_files,
        "tallies": [tallies[name].as_dict() for name in STAGES],
        "chunks": [asdict(chunk) for chunk in out.chunks],
        "text_bytes": {n: p.text_bytes for n, p in zip(STAGES, passes, strict=True)},
        "cpu_s": dict(zip((*STAGES, "store"), [*own, total - passes[-1].cpu_s], strict=True)),
        "bytes_in": part.size,
    }


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
            tally.drop("domain_not_in_mixture")
        elif document.domain in full or (left is not None and size > left):
            full.add(document.domain)
            tally.drop("domain_full")
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


def _passed(documents: Iterable[Document], tally: Tally) -> Iterator[Document]:
    for document in documents:
        tally.rows_in += 1
        tally.rows_out += 1
        yield document


def _check_chain(tallies: list[Tally], stored: int) -> None:
    """Raise RuntimeError unless every stage takes in what the one before it hands on."""
    handed = [tally.rows_out for tally in tallies]
    taken = [*(tally.rows_in for tally in tallies[1:]), stored]
    if handed != taken:
        raise RuntimeError(f"stages hand on {handed} rows, but take in {taken}")


class _Metered:
    """Documents, with the CPU time until each of them is there, and their bytes."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents = iter(documents)
        self.cpu_s = 0.0
        self.text_bytes = 0

    def __iter__(self) -> Iterator[Document]:
        return self

    def __next__(self) -> Document:
        start = time.thread_time()
        try:
            document = next(self._documents)
        finally:
            self.cpu_s += time.thread_time() - start
        self.text_bytes += len(document.text)
        return document


def check_domains(work: Work, text_bytes: Mapping[str, int], reasons: str) -> None:
    """Raise InputError for every domain of which nothing is left, or too little of a sample."""
    sources = work.data.build.sources
    wanted = 1
    if all(source.kind == "sample" for source in sources):
        limits = [source.max_bytes // 2 for source in sources if source.max_bytes]
        wanted = min([MIN_DOMAIN_BYTES, *limits])
    problems = []
    for domain in work.domains:
        size = text_bytes.get(domain, 0)
        if not size:
            problems.append(
                Problem(
                    f"domain {domain!r} of the corpus has no documents "
                    f"({reasons or 'nothing was read'})",
                    "the mixture takes tokens from every domain that it names",
                    f"add a source with {domain}, loosen data.build.filters, or "
                    f"'~data.mixture.{domain}'",
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
