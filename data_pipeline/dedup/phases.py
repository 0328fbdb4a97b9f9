"""Exact and near deduplication of a corpus that no machine holds in memory, in four stages.

    sign    every chunk: the hash of each document and one hash per band, sorted, on disk
    match   every band: pairs of documents that agree in it, from the sorted files of all chunks
    cluster once: union-find over all pairs; of each cluster the first document stays
    drop    every chunk: a filter of the documents, part of the stages that read them

A document's number is its chunk << 32 | its row, and the smallest number of a cluster stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.batches import batches
from data_pipeline.dedup.exact import normalise
from data_pipeline.dedup.minhash import (
    band_hashes,
    is_code,
    num_bands,
    num_hashes,
    signatures,
    sketch,
)
from data_pipeline.dedup.pairs import (
    BLOCK,
    U64,
    Records,
    Sketches,
    SortedRecords,
    chunks_of,
    find_pairs,
    join,
    number_of,
    numbers_of,
    roots_of,
    rows_of,
)
from data_pipeline.schema import Document, Place, Tally
from loopcoder.config.build import NearDedupConfig

REASONS = ("", "exact_duplicate", "near_duplicate")
"""What the bytes of `drop` mean."""

SKETCH = "sketch.bin"
"""One byte per hash, document after document."""

_BAND = np.dtype([("hash", "<u8"), ("number", "<u8")])
_EXACT = np.dtype([("hash", "<u8"), ("low", "<u8"), ("number", "<u8")])
_BATCH_BYTES = 1 << 18
"""UTF-8 that is signed at a time; the arrays of more leave the cache of a core."""
_MEMMAP_DOCUMENTS = 1 << 28
"""From this many documents on the arrays of `cluster` lie on disk."""


class Fates(NamedTuple):
    """What becomes of the documents of a chunk."""

    reasons: NDArray[np.uint8]
    """One byte per document, see REASONS."""
    stays: U64
    """For every copy, in their order, the number of the document that stays."""


class OtherDocumentsError(Exception):
    """Documents are not those that were signed: the wrong ones would be dropped."""


def record_files(config: NearDedupConfig) -> list[str]:
    """Return the files of a chunk that `match` compares, one after the other: (hash u64, number
    u64) of each band without exact copies, and (xxh3-128 as 2 x u64, number u64) of all documents,
    sorted."""
    return [*(f"band-{band:02d}.bin" for band in range(num_bands(config))), "exact.bin"]


def has_sketches(config: NearDedupConfig) -> bool:
    """Tell whether pairs that a band finds are verified."""
    return num_bands(config) > 0 and config.verify is not None


def _whole(document: Document) -> str:
    return document.text


def sign(
    documents: Iterable[Document],
    chunk: int,
    folder: Path,
    config: NearDedupConfig,
    near_text: Callable[[Document], str] = _whole,
    exact_text: Callable[[Document], str] = _whole,
) -> tuple[int, str]:
    """Write the sorted records of one chunk; return its number of documents and their hash.

    Memory: 100 bytes per document of the chunk, and the arrays of one batch.

    Args:
        documents: The documents of the chunk, in an order that is always the same.
        chunk: Its number; of copies, the one in the smallest chunk stays.
        folder: Where `record_files` go, and the sketches.
        config: What signatures are made of.
        near_text: Returns what of a document near copies have in common.
        exact_text: Returns what of a document exact copies have in common.
    """
    names = [*record_files(config), *([SKETCH] if has_sketches(config) else [])]
    ids = xxhash.xxh3_128()
    count = 0
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / name, "w+b")) for name in names}
        for batch in batches(documents, lambda document: len(document.text) + 64, _BATCH_BYTES):
            for document in batch:
                ids.update(_identity(document))
            _sign_batch(batch, number_of(chunk, count), files, config, near_text, exact_text)
            count += len(batch)
        *bands, all_of_them = record_files(config)
        exact = _rewritten(files[all_of_them], _EXACT, ("hash", "low", "number"), None)
        same = (exact["hash"][1:] == exact["hash"][:-1]) & (exact["low"][1:] == exact["low"][:-1])
        copies = np.zeros(count, dtype=bool)
        copies[rows_of(exact["number"][1:][same])] = True
        for name in bands:
            _rewritten(files[name], _BAND, ("hash", "number"), copies)
    return count, ids.hexdigest()


def match(records: Sequence[Path], out: Path, *, exact: bool, sketches: Sketches | None) -> int:
    """Write the pairs that agree in one band, or are exact copies; return their number.

    Memory: about 100 MB, whatever the number of documents; a band value that millions of documents
    share is worked off in pieces.

    Args:
        records: The same of `record_files` of every chunk.
        out: Pairs of numbers (u64, u64), the first the smaller.
        exact: They are the exact copies.
        sketches: Verify pairs; None takes every one.
    """
    readers = [SortedRecords(path, _EXACT if exact else _BAND) for path in records]
    count = 0
    with open(out, "wb") as file:
        for pairs in find_pairs(readers, sketches):
            file.write(pairs.tobytes())
            count += len(pairs)
    return count


def cluster(
    near: Sequence[Path], exact: Path, documents: Sequence[int], temporary: Path
) -> Iterator[Fates]:
    """Decide about every document; yield what becomes of those of each chunk.

    Memory: 9 bytes per document; on disk, through the page cache, from 2^28 documents on.

    Args:
        near: Pairs of every band.
        exact: Pairs of exact copies.
        documents: How many each chunk has.
        temporary: Folder for the arrays, empty again afterwards.
    """
    bases = np.cumsum([0, *documents])
    parents = _array(temporary / "parents.tmp", int(bases[-1]), np.dtype(np.int64))
    reasons = _array(temporary / "reasons.tmp", int(bases[-1]), np.dtype(np.uint8))
    for start in range(0, len(parents), BLOCK):
        stop = min(start + BLOCK, len(parents))
        parents[start:stop] = np.arange(start, stop)
    for path in (*near, exact):
        for numbers in _edges(path):
            ends = bases[chunks_of(numbers)] + rows_of(numbers)
            if path == exact:
                reasons[ends[:, 1]] = 1
            join(parents, ends[:, 0], ends[:, 1])
    for chunk in range(len(documents)):
        yield _fates(parents, reasons, bases, chunk)
    del parents, reasons
    for path in temporary.glob("*.tmp"):
        path.unlink()


def drop(
    documents: Iterable[Document],
    reasons: bytes,
    ids: str,
    tally: Tally,
    stays: Callable[[int], Place | None] = lambda _: None,
) -> Iterator[Document]:
    """Yield the documents of a chunk that stay, and count all of them.

    Args:
        documents: Those that were signed.
        reasons: What `cluster` gave for the chunk.
        ids: Their hash, as `sign` returned it.
        tally: Counts the copies.
        stays: Returns the place of the document that stays for the first copy, the second, ...

    Raises:
        OtherDocumentsError: these are not those that were signed; it may show only at the end.
    """
    found = xxhash.xxh3_128()
    row = copies = 0
    for document in documents:
        found.update(_identity(document))
        reason = reasons[row] if row < len(reasons) else 0
        row += 1
        tally.rows_in += 1
        if reason:
            tally.drop(REASONS[reason], document.place, stays(copies))
            copies += 1
        else:
            tally.rows_out += 1
            yield document
    if row != len(reasons) or found.hexdigest() != ids:
        fact = f"its {row} documents are not the {len(reasons)} that were signed"
        raise OtherDocumentsError(fact)


# Signing


def _sign_batch(
    batch: Sequence[Document],
    first: int,
    files: Mapping[str, BinaryIO],
    config: NearDedupConfig,
    near_text: Callable[[Document], str],
    exact_text: Callable[[Document], str],
) -> None:
    """Append the records of consecutive documents, the first of which has the number `first`."""
    texts = [exact_text(document).encode() for document in batch]
    exact = np.zeros(len(batch), dtype=_EXACT)
    digests = b"".join(xxhash.xxh3_128_digest(normalise(text)) for text in texts)
    pairs = np.frombuffer(digests, dtype=">u8").reshape(-1, 2)
    exact["hash"], exact["low"] = pairs[:, 0], pairs[:, 1]
    exact["number"] = np.arange(first, first + len(batch), dtype=np.uint64)
    *bands, all_of_them = record_files(config)
    files[all_of_them].write(exact.tobytes())
    if not bands:
        return
    if near_text is not exact_text:
        texts = [near_text(document).encode() for document in batch]
    rows = np.zeros((len(batch), num_hashes(config)), dtype=np.uint32)
    known = np.zeros(len(batch), dtype=bool)
    for code in (False, True):
        chosen = [i for i, document in enumerate(batch) if is_code(document) is code]
        if chosen:
            rows[chosen], known[chosen] = signatures(
                [texts[i] for i in chosen], code=code, config=config
            )
    records = np.empty(int(known.sum()), dtype=_BAND)
    records["number"] = exact["number"][known]
    for name, hashes in zip(bands, band_hashes(rows[known], config), strict=True):
        records["hash"] = hashes
        files[name].write(records.tobytes())
    if has_sketches(config):
        files[SKETCH].write(sketch(rows).tobytes())


def _rewritten(
    file: BinaryIO, dtype: np.dtype[np.void], keys: Sequence[str], copies: NDArray[np.bool_] | None
) -> Records:
    """Sort the records of `file` by `keys`, leave out those of `copies`, and return them."""
    file.seek(0)
    records = np.frombuffer(file.read(), dtype=dtype)
    if copies is not None:
        records = records[~copies[rows_of(records["number"])]]
    records = records[np.lexsort([records[key] for key in reversed(keys)])]
    file.seek(0)
    file.truncate()
    file.write(records.tobytes())
    return records


def _array(path: Path, length: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array of zeros, in memory or in the file `path`."""
    if length < _MEMMAP_DOCUMENTS:
        return np.zeros(length, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="w+", shape=(length,))


def _edges(path: Path) -> Iterator[U64]:
    """Yield the edges of a file, `[n, 2]`."""
    with open(path, "rb") as file:
        while data := file.read(16 * BLOCK):
            yield np.frombuffer(data, dtype="<u8").reshape(-1, 2)


def _fates(
    parents: NDArray[np.int64], reasons: NDArray[np.uint8], bases: NDArray[np.int64], chunk: int
) -> Fates:
    start, stop = int(bases[chunk]), int(bases[chunk + 1])
    out = np.empty(stop - start, dtype=np.uint8)
    stays = []
    for low in range(start, stop, BLOCK):
        nodes = np.arange(low, min(low + BLOCK, stop))
        roots = roots_of(parents, nodes)
        exact = np.asarray(reasons[nodes])
        here = np.where((roots != nodes) & (exact == 0), 2, exact)
        out[low - start : low - start + len(nodes)] = here
        first = roots[here > 0]
        of = np.searchsorted(bases, first, side="right") - 1
        stays.append(numbers_of(of, first - bases[of]))
    return Fates(out, np.concatenate(stays) if stays else np.zeros(0, dtype=np.uint64))


def _identity(document: Document) -> bytes:
    return f"{document.id} {len(document.text)}\n".encode()
