"""The stages of deduplication: sign, match and cluster; `kept` filters a chunk by their result.

WORK/dedup/sign/00003/     records of a chunk: exact.bin, band-00.bin, ..., sketch.bin
WORK/dedup/match/          band-00.bin, ..., exact.bin: pairs of copies
WORK/dedup/drop/00003      one byte per document of a chunk: 0 stays, 1 exact copy, 2 near copy
WORK/dedup/stays/00003     for every copy of a chunk, the number of the document that stays
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dedup import phases
from data_pipeline.dedup.minhash import algorithm, num_hashes
from data_pipeline.dedup.pairs import Sketches, chunks_of, rows_of
from data_pipeline.readers.conversations import said, told_apart_by
from data_pipeline.schema import Document, Place, Tally
from data_pipeline.tasks import places
from data_pipeline.tasks.places import Places
from data_pipeline.tasks.work import (
    Done,
    Output,
    Result,
    Work,
    damaged,
    foreign,
    read_sealed,
    write_sealed,
)


@dataclass(frozen=True)
class Signed(Result):
    """What was signed of a chunk."""

    stage: ClassVar[str] = "sign"
    documents: int
    ids: str
    """Hash of the documents and their order."""
    algorithm: str
    """Version of what made the signatures."""


@dataclass(frozen=True)
class Matched(Result):
    """What one band found, or the hash of whole documents."""

    stage: ClassVar[str] = "match"
    pairs: int


@dataclass(frozen=True)
class Clustered(Result):
    """How many documents are copies."""

    stage: ClassVar[str] = "cluster"
    drops: dict[str, int]
    """By reason."""


def sign(work: Work, chunk: int) -> Output:
    """Write the sorted records of a chunk."""
    config = work.data.build.near_dedup
    folder = _signed_folder(work, chunk)
    folder.mkdir(parents=True, exist_ok=True)
    found = work.read(chunk)
    if work.data.build.list_drops:
        found = places.written(found, folder)
    texts = {"near_text": said, "exact_text": told_apart_by} if work.data.build.is_chat else {}
    documents, ids = phases.sign(found, chunk, folder, config, **texts)
    return Output(
        Signed(documents, ids, algorithm(config)),
        files=sorted(folder.iterdir()),
        bytes_in=work.text_bytes(chunk),
    )


def num_matches(work: Work) -> int:
    """Return how many tasks `match` has: one per band, and the exact copies."""
    return len(phases.record_files(work.data.build.near_dedup))


def match(work: Work, index: int) -> Output:
    """Write the pairs of one band of all chunks, or the exact copies."""
    config = work.data.build.near_dedup
    name = phases.record_files(config)[index]
    exact = index == num_matches(work) - 1
    verified = phases.has_sketches(config) and not exact
    records: list[Path] = []
    sketches: list[Path] = []
    for chunk, done in enumerate(work.all_done(Signed)):
        _check_algorithm(work, done)
        folder = _signed_folder(work, chunk)
        records.append(done.file(folder / name))
        if verified:  # read in places only, so no more than the size is compared
            sketches.append(done.file(folder / phases.SKETCH, contents=False))
    out = work.folder / "dedup" / "match" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    verify = None
    if verified and config.verify is not None:
        verify = Sketches(sketches, num_hashes(config), config.verify)
    return Output(Matched(phases.match(records, out, exact=exact, sketches=verify)), files=[out])


def cluster(work: Work, _: int) -> Output:
    """Write down what stays of every chunk."""
    folder = work.folder / "dedup"
    names = phases.record_files(work.data.build.near_dedup)
    found = work.all_done(Matched)
    *near, exact = [
        done.file(folder / "match" / name) for name, done in zip(names, found, strict=True)
    ]
    documents = [done.result.documents for done in work.all_done(Signed)]
    drops = Counter(dict.fromkeys(phases.REASONS[1:], 0))
    for path in (_drop_path(work, 0), _stays_path(work, 0)):
        path.parent.mkdir(exist_ok=True)
    for chunk, (reasons, stays) in enumerate(phases.cluster(near, exact, documents, folder)):
        write_sealed(_drop_path(work, chunk), reasons.tobytes())
        write_sealed(_stays_path(work, chunk), stays.tobytes())
        for code, reason in enumerate(phases.REASONS[1:], 1):
            drops[reason] += int((reasons == code).sum())
    return Output(Clustered(dict(drops)), left_out=drops)


def kept(work: Work, chunk: int, tally: Tally) -> Iterator[Document]:
    """Yield the documents of a chunk that are no copies.

    Raises:
        InputError: something that these stages wrote was changed; it may show only at the end.
    """
    reasons = read_sealed(_drop_path(work, chunk), work.folder)
    ids = work.result(Signed, chunk).ids
    stays = _stays(work, chunk) if tally.listed is not None else lambda _: None
    try:
        yield from phases.drop(work.read(chunk), reasons, ids, tally, stays)
    except phases.OtherDocumentsError as error:
        raise damaged(work.folder, f"{work.documents / work.chunks[chunk].name}: {error}") from None


def places_of(work: Work, chunk: int) -> Places:
    """Return where the documents of a chunk come from, by their row in it.

    Raises:
        InputError: it was changed after it was written.
    """
    if not work.data.build.list_drops:
        return Places(None)
    done, folder = work.done(Signed, chunk), _signed_folder(work, chunk)
    if str((folder / places.PLACES).relative_to(work.folder)) not in done.files:
        return Places(None)  # signed before lists were asked for
    for name in (places.PLACES, places.ENDS):  # read in places only
        done.file(folder / name, contents=False)
    return Places(folder)


def kept_rows(work: Work, chunk: int) -> NDArray[np.int64]:
    """Return the rows in the chunk of the documents that `kept` yields."""
    reasons = read_sealed(_drop_path(work, chunk), work.folder)
    return np.flatnonzero(np.frombuffer(reasons, dtype=np.uint8) == 0)


def _stays(work: Work, chunk: int) -> Callable[[int], Place | None]:
    """Return what gives the place of the document that stays for each copy of a chunk."""
    numbers = np.frombuffer(read_sealed(_stays_path(work, chunk), work.folder), dtype="<u8")
    chunks, rows = chunks_of(numbers).tolist(), rows_of(numbers).tolist()
    of_chunk = lru_cache(maxsize=64)(partial(places_of, work))

    def stays(copy: int) -> Place | None:
        place = of_chunk(chunks[copy])[rows[copy]]
        return place if place.path else None

    return stays


def _check_algorithm(work: Work, done: Done[Signed]) -> None:
    mine = algorithm(work.data.build.near_dedup)
    if done.result.algorithm != mine:
        fact = f"documents were signed by version {done.result.algorithm} of rensa's MinHash"
        raise foreign(work.folder, f"{fact}, this is version {mine}")


def _signed_folder(work: Work, chunk: int) -> Path:
    return work.folder / "dedup" / "sign" / f"{chunk:05d}"


def _drop_path(work: Work, chunk: int) -> Path:
    return work.folder / "dedup" / "drop" / f"{chunk:05d}"


def _stays_path(work: Work, chunk: int) -> Path:
    return work.folder / "dedup" / "stays" / f"{chunk:05d}"
