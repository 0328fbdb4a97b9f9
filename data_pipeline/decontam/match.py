"""Decontamination: documents that repeat problems of a benchmark are left out.

A benchmark is an index of hashed word n-grams, made once from its prompts, solutions, tests and
function descriptions. Every such text is a part of its own. A document is contaminated if it holds
at least `share` of a part's n-grams, wherever they stand in it, so the size of the document does
not matter.

Words are runs of letters and digits in lower case; everything else separates, `_` too. Layout,
comments around a problem and punctuation therefore change nothing; a renamed variable changes up
to n n-grams each time it occurs, and a paraphrase is not found at all.

n is 13, or the length that the longest prompt of 95% of a benchmark's problems reaches if that is
less, but at least 8. A part that is shorter than n words is left out: short texts are found in
ordinary documents too. N-grams that more than 8 parts have are boilerplate and are left out. Of
what remains of a part, 12 n-grams are kept, chosen by hash, so that the share is estimated without
bias (standard deviation 0.13 at a share of 0.25) and a verbatim copy is found. A hash has 48 bits:
by chance, one n-gram in 3 * 10^9 of a corpus is taken for one of BFCL's 10^5.

A share of 0.25 drops 3 of 21,051 files of ordinary code and documentation (341 MB); 0.15 drops 12
of 4,852 files of which 0.25 drops none. With 5% of the words changed, 0.25 finds 125 of HumanEval's
164 prompts, 0.5 finds 75.

13-grams: Brown et al., 2020, appendix C.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.batches import batches
from data_pipeline.decontam.hashing import (
    BLOCK_WORDS,
    BORDER_HASH,
    HASH_BITS,
    JOIN,
    NONE,
    Hashes,
    ngram_hashes,
    normalise,
    word_hashes,
)
from data_pipeline.decontam.index import Benchmark, Part, strings
from data_pipeline.schema import Document, Tally
from loopcoder.config.build import DecontaminateConfig
from loopcoder.errors import InputError, LoopcoderError, counted

BUILTIN = tuple(DecontaminateConfig().benchmarks)
"""Benchmarks whose index is part of the package: by default all of them are looked for."""

_FOLDER = Path(__file__).parent
_BATCH_CHARS = 1 << 18
_FILTER_BITS = 20
_FILTER_SHIFT = np.uint64(HASH_BITS - _FILTER_BITS)


@dataclass(frozen=True)
class Overlap:
    """A part of a benchmark that a document repeats."""

    benchmark: str
    problem: str
    found: int
    """N-grams of the part that the document has."""
    size: int
    """N-grams of the part in the index."""


@dataclass(frozen=True)
class _Table:
    """The n-grams of one length of all benchmarks."""

    ngram: int
    hashes: Hashes
    """[n-grams] sorted; one that several parts have stands several times."""
    part: NDArray[np.int32]
    """[n-grams] Part of each, in the numbering of the whole index."""
    filter: NDArray[np.bool_]
    """[2^_FILTER_BITS] Whether any n-gram begins with these bits."""

    def find(self, words: Hashes) -> tuple[NDArray[np.int64], Hashes]:
        """Return the places of the n-grams that are in the table, and their hashes."""
        places, hashes = [], []
        for number, grams in enumerate(ngram_hashes(words, self.ngram)):
            maybe = np.flatnonzero(self.filter[grams >> _FILTER_SHIFT])
            if not len(maybe):
                continue
            wanted = grams[maybe]
            at = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
            hit = self.hashes[at] == wanted
            places.append(maybe[hit] + number * BLOCK_WORDS)
            hashes.append(wanted[hit])
        if not places:
            return np.zeros(0, dtype=np.int64), NONE
        return np.concatenate(places), np.concatenate(hashes)

    def parts(self, hashes: Hashes) -> NDArray[np.int32]:
        """Return the part of every n-gram that has one of these distinct hashes."""
        left = np.searchsorted(self.hashes, hashes)
        right = np.searchsorted(self.hashes, hashes, side="right")
        ranges = [self.part[a:b] for a, b in zip(left, right, strict=True)]
        return np.concatenate(ranges or [self.part[:0]])


class Index:
    """Benchmarks to look for. Immutable: workers may share it."""

    def __init__(self, benchmarks: Sequence[Benchmark], share: float) -> None:
        """Merge benchmarks.

        Args:
            benchmarks: Benchmarks to look for; their names differ.
            share: Smallest share of a part's n-grams that makes a document contaminated, above 0.

        Raises:
            InputError: a name is given twice.
        """
        names = [b.name for b in benchmarks]
        if len(set(names)) < len(names):
            raise InputError.of(
                f"the benchmarks are called {', '.join(names)}",
                "drops are counted by name, so names must differ",
                "rename one of the files",
            )
        self.benchmarks = tuple(benchmarks)
        self._problems = [(b.name, p) for b in benchmarks for p in b.problems]
        self._sizes = np.concatenate(
            [np.bincount(b.part, minlength=len(b.problems)) for b in benchmarks]
            or [np.zeros(0, dtype=np.int64)]
        )
        # the slack keeps 0.1 * 30 at 3
        self._needed = np.maximum(np.ceil(share * self._sizes - 1e-9), 1)
        self._tables = [_table(n, benchmarks) for n in sorted({b.ngram for b in benchmarks})]

    def overlaps(self, texts: Sequence[str]) -> list[list[Overlap]]:
        """Return for each text the parts of benchmarks that it repeats, benchmark by benchmark."""
        words = word_hashes(JOIN.join(map(normalise, texts)))
        found: list[list[Overlap]] = [[] for _ in texts]
        for table in self._tables:
            places, hashes = table.find(words)
            if not len(places):
                continue
            # no n-gram of a benchmark contains a border
            borders = np.flatnonzero(words == BORDER_HASH)
            owner = np.searchsorted(borders, places)
            for text in np.unique(owner):
                parts = table.parts(np.unique(hashes[owner == text]))
                numbers, matched = np.unique(parts, return_counts=True)
                enough = matched >= self._needed[numbers]
                for part, count in zip(numbers[enough], matched[enough], strict=True):
                    benchmark, problem = self._problems[part]
                    overlap = Overlap(benchmark, problem, int(count), int(self._sizes[part]))
                    found[text].append(overlap)
        order = {b.name: i for i, b in enumerate(self.benchmarks)}
        return [sorted(f, key=lambda o: (order[o.benchmark], o.problem)) for f in found]


def _table(ngram: int, benchmarks: Sequence[Benchmark]) -> _Table:
    hashes, parts = [NONE], [np.zeros(0, dtype=np.int32)]
    first = 0
    for benchmark in benchmarks:
        if benchmark.ngram == ngram:
            hashes.append(benchmark.hashes)
            parts.append(benchmark.part + np.int32(first))
        first += len(benchmark.problems)
    every = np.concatenate(hashes)
    order = np.argsort(every, kind="stable")
    table = np.zeros(1 << _FILTER_BITS, dtype=bool)
    table[every >> _FILTER_SHIFT] = True
    return _Table(ngram, every[order], np.concatenate(parts)[order], table)


def _whole(document: Document) -> str:
    return document.text


def decontaminate(
    documents: Iterable[Document],
    index: Index,
    tally: Tally,
    text_of: Callable[[Document], str] = _whole,
) -> Iterator[Document]:
    """Hand on the documents that repeat no benchmark in what `text_of` returns of them, in their
    order.

    The others are dropped as `contaminated_<benchmark>`, the first in the index's order if there
    are several; notes count the documents that repeat each problem, as `hit_<benchmark>/<problem>`.
    One that breaks the search is dropped by itself, as `broke_<error>`. Documents are read ahead,
    about 256 kB of them.
    """
    for batch in batches(documents, lambda document: len(document.text), _BATCH_CHARS):
        for document, found in zip(batch, _survived(index, batch, text_of), strict=True):
            tally.rows_in += 1
            if isinstance(found, Exception):
                tally.drop(f"broke_{type(found).__name__}", document.place)
                continue
            if not found:
                tally.rows_out += 1
                yield document
                continue
            tally.drop(f"contaminated_{found[0].benchmark}", document.place)
            tally.notes.update({f"hit_{o.benchmark}/{o.problem}" for o in found})


def _survived(
    index: Index, batch: Sequence[Document], text_of: Callable[[Document], str]
) -> Sequence[Sequence[Overlap] | Exception]:
    """Return the overlaps of each document, or why they cannot be found."""
    try:
        return index.overlaps([text_of(document) for document in batch])
    except (LoopcoderError, OSError):
        raise
    except Exception as error:
        if len(batch) == 1:
            return [error]
    return [found for document in batch for found in _survived(index, [document], text_of)]


def open_index(config: DecontaminateConfig) -> Index:
    """Load the benchmarks that are built in, and index the user's own files.

    Raises:
        InputError: a file is missing, of another kind, or holds nothing that can be indexed.
    """
    return Index(
        [
            Benchmark.load(_FOLDER / f"{name}.npz")
            if name in BUILTIN
            else _benchmark_of_file(Path(name).expanduser(), config.ngram)
            for name in config.benchmarks
        ],
        config.share,
    )


def _benchmark_of_file(path: Path, ngram: int | None) -> Benchmark:
    """Index a file; every text of a .jsonl row, and every paragraph of a .txt, is a part.

    A row's problem is its `task_id`, `id` or `name`, else the number of its line.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".txt":
            blocks = (b for b in re.split(r"\n\s*\n", content) if b.strip())
            parts = [Part(str(i), block) for i, block in enumerate(blocks)]
        elif path.suffix in (".jsonl", ".ndjson"):
            rows = content.split("\n")
            parts = [p for i, row in enumerate(rows) if row.strip() for p in _row_parts(i, row)]
        else:
            raise ValueError("known are .jsonl and .txt")
    except (OSError, ValueError) as e:
        raise InputError.of(
            f"cannot index the benchmark {str(path)!r}: {e}",
            f"it is neither one of {', '.join(BUILTIN)} nor a readable file",
            "data.build.decontaminate.benchmarks=[humaneval,bfcl_v4,FILE.jsonl]",
        ) from e
    benchmark = Benchmark.make(path.stem, parts, ngram=ngram)
    if not len(benchmark.hashes):
        raise InputError.of(
            f"the benchmark {str(path)!r} has {counted(len(parts), 'text')}, "
            f"none of {benchmark.ngram} words",
            "nothing could be found with it",
            f"longer texts, or data.build.decontaminate.ngram below {benchmark.ngram}",
        )
    return benchmark


def _row_parts(number: int, line: str) -> list[Part]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"line {number + 1} is no object")
    problem = next((str(row[k]) for k in ("task_id", "id", "name") if k in row), str(number))
    return [Part(problem, " ".join(strings(value))) for value in row.values()]
