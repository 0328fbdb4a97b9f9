"""Exact and near deduplication of a corpus that no machine holds in memory, in four phases.

    sign    every part: the hash of each document and one hash a band, sorted, on disk
    match   every band: pairs of documents that agree in it, from the sorted files of all parts
    cluster once: union-find over all pairs; of each cluster the first document stays
    drop    every part: a filter of the documents

A part is a fixed piece of the input, say one file; which rank works on it when is of no concern,
so the result is the same for any number of ranks: rank r does `share(num_parts, r, world_size)`
and then `share(num_matches(config), r, world_size)`. A document's number is its part << 32 | its
row, and the smallest number of a cluster stays.

    sign/00000/        one folder a part
        band-00.bin    records (hash u64, number u64) sorted by both, without exact copies
        exact.bin      records (xxh3-128 as 2 x u64, number u64), sorted
        sketch.bin     a byte a hash and document, in the order of the documents
        done.json      fingerprint, number of documents, sizes and hashes of the files
    match/band-00/     edges.bin: pairs of numbers (u64, u64), the first the smaller; done.json
    match/exact/       the same
    cluster/           drop-00000.bin: a byte a document (0 stays, 1 exact copy, 2 near copy)

Every folder is filled under a name that ends in .tmp and renamed, so one under its final name is
complete; one that is there already is not made again. One process at a time may work on a folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.dedup.exact import normalise
from data_pipeline.dedup.minhash import MinHashConfig, band_hashes, is_code, signatures, sketch
from data_pipeline.dedup.pairs import (
    CHUNK,
    U64,
    Records,
    Sketches,
    SortedRecords,
    find_pairs,
    join,
    number_of,
    parts_of,
    roots_of,
    rows_of,
)
from data_pipeline.schema import Document, Tally
from data_pipeline.tasks.done_folder import DoneFolder, atomically, done_folder, finished, seal
from loopcoder.errors import InputError
from loopcoder.storage.digest import fingerprint

FORMAT_VERSION = 1
REASONS = ("", "exact_duplicate", "near_duplicate")
"""What the bytes of a drop file mean."""

_BAND = np.dtype([("hash", "<u8"), ("number", "<u8")])
_EXACT = np.dtype([("hash", "<u8"), ("low", "<u8"), ("number", "<u8")])
_BATCH_BYTES = 1 << 18
"""UTF-8 that is signed at a time; the arrays of more leave the cache of a core."""
_MEMMAP_DOCUMENTS = 1 << 28
"""From this many documents on the arrays of `cluster` lie on disk."""


def share(count: int, rank: int, world_size: int) -> range:
    """Return which of `count` parts or matches a rank works on."""
    return range(rank, count, world_size)


def num_matches(config: MinHashConfig) -> int:
    """Return how many matches there are: one a band, and the exact copies."""
    return config.bands + 1


def sign(
    documents: Iterable[Document],
    folder: Path,
    part: int,
    config: MinHashConfig,
    inputs: str = "",
) -> int:
    """Write the sorted records of one part; return its number of documents.

    Memory: 100 bytes a document of the part, and the arrays of one batch.

    Args:
        documents: The documents of the part, in an order that is always the same.
        folder: What all phases share.
        part: Number of the part; of copies, the one in the smallest part stays.
        config: What signatures are made of.
        inputs: What tells this input from another (names, sizes, hashes), for the fingerprint.

    Raises:
        InputError: the part is there, but was made with another config or from another input.
    """
    target = _part_folder(folder, part)
    made = _signed_with(config)
    made_from = fingerprint(FORMAT_VERSION, "sign", made, part, inputs)
    done = finished(target, made_from)
    if done is not None:
        return int(done["documents"])
    with atomically(target) as temporary, contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(temporary / name, "w+b")) for name in _part_files(config)]
        ids = xxhash.xxh3_128()
        count = 0
        for batch in _batches(documents):
            for document in batch:
                ids.update(_identity(document))
            _sign_batch(batch, number_of(part, count), files, config)
            count += len(batch)
        exact = _rewritten(files[0], _EXACT, ("hash", "low", "number"), None)
        same = (exact["hash"][1:] == exact["hash"][:-1]) & (exact["low"][1:] == exact["low"][:-1])
        copies = np.zeros(count, dtype=bool)
        copies[rows_of(exact["number"][1:][same])] = True
        for file in files[1 : 1 + config.bands]:
            _rewritten(file, _BAND, ("hash", "number"), copies)
        for file in files:
            file.flush()
        seal(temporary, made_from, config=made, documents=count, ids=ids.hexdigest())
    return count


def match(folder: Path, index: int, num_parts: int, config: MinHashConfig) -> int:
    """Write the pairs that agree in one band, or are exact copies; return their number.

    Memory: about 100 MB, whatever the number of documents; a band value that millions of documents
    share is worked off in pieces.

    Args:
        folder: What all phases share.
        index: The band; `config.bands` stands for the exact copies.
        num_parts: Parts of the corpus; all must have been signed.
        config: As in `sign`.

    Raises:
        InputError: a part is missing, damaged or made with another config.
    """
    exact = index == config.bands
    name = "exact" if exact else f"band-{index:02d}"
    parts = [_part(folder, part, config) for part in range(num_parts)]
    target = folder / "match" / name
    made_from = fingerprint(FORMAT_VERSION, "match", name, config.verify, [p.digest for p in parts])
    done = finished(target, made_from)
    if done is not None:
        return int(done["edges"])
    for part in parts:
        part.check(f"{name}.bin")
    sketches = None
    if config.verify is not None and not exact:
        sketches = Sketches(parts, config.num_hashes, config.verify)
    readers = [SortedRecords(p.path / f"{name}.bin", _EXACT if exact else _BAND) for p in parts]
    edges = 0
    with atomically(target) as temporary:
        with open(temporary / "edges.bin", "wb") as file:
            for pairs in find_pairs(readers, sketches):
                file.write(pairs.tobytes())
                edges += len(pairs)
        seal(temporary, made_from, edges=edges)
    return edges


def cluster(folder: Path, num_parts: int, config: MinHashConfig) -> Counter[str]:
    """Decide about every document; return how many are dropped, by reason.

    Memory: 9 bytes a document; on disk, through the page cache, from 2^28 documents on.

    Raises:
        InputError: a part or a match is missing, damaged or made with another config.
    """
    parts = [_part(folder, part, config) for part in range(num_parts)]
    names = [*(f"band-{band:02d}" for band in range(config.bands)), "exact"]
    matches = [
        done_folder(
            folder / "match" / name,
            fingerprint(FORMAT_VERSION, "match", name, config.verify, [p.digest for p in parts]),
            f"match {name}",
        )
        for name in names
    ]
    target = folder / "cluster"
    made_from = fingerprint(FORMAT_VERSION, "cluster", [m.digest for m in matches])
    done = finished(target, made_from)
    if done is not None:
        return Counter(done["drops"])
    for found in matches:
        found.check("edges.bin")
    bases = np.cumsum([0, *(part.marker["documents"] for part in parts)])
    drops: Counter[str] = Counter()
    with atomically(target) as temporary:
        parents = _array(temporary / "parents.tmp", int(bases[-1]), np.dtype(np.int64))
        reasons = _array(temporary / "reasons.tmp", int(bases[-1]), np.dtype(np.uint8))
        for start in range(0, len(parents), CHUNK):
            stop = min(start + CHUNK, len(parents))
            parents[start:stop] = np.arange(start, stop)
        for name, found in zip(names, matches, strict=True):
            for numbers in _chunks(found.path / "edges.bin"):
                ends = bases[parts_of(numbers)] + rows_of(numbers)
                if name == "exact":
                    reasons[ends[:, 1]] = 1
                join(parents, ends[:, 0], ends[:, 1])
        for part in range(num_parts):
            dropped = _reasons_of(parents, reasons, int(bases[part]), int(bases[part + 1]))
            (temporary / f"drop-{part:05d}.bin").write_bytes(dropped.tobytes())
            for code in (1, 2):
                drops[REASONS[code]] += int((dropped == code).sum())
        del parents, reasons
        for path in temporary.glob("*.tmp"):
            path.unlink()
        ids = [part.marker["ids"] for part in parts]
        seal(temporary, made_from, drops=dict(drops), ids=ids)
    return drops


def drop(
    documents: Iterable[Document], folder: Path, part: int, tally: Tally
) -> Iterator[Document]:
    """Yield the documents of a part that stay, and count all of them.

    Raises:
        InputError: the clusters are missing or damaged, or these are not the documents that were
            signed; the latter may show only at the end.
    """
    done = done_folder(folder / "cluster", None, "cluster")
    name = f"drop-{part:05d}.bin"
    if name not in done.marker["files"]:
        raise InputError.of(
            f"{done.path} has no {name}",
            f"it was made of {len(done.marker['ids'])} parts",
            f"remove {done.path} and cluster again with all parts",
        )
    done.check(name)
    reasons = (done.path / name).read_bytes()
    ids = xxhash.xxh3_128()
    row = 0
    for document in documents:
        ids.update(_identity(document))
        reason = reasons[row] if row < len(reasons) else 0
        row += 1
        tally.rows_in += 1
        if reason:
            tally.drop(REASONS[reason])
        else:
            tally.rows_out += 1
            yield document
    if row != len(reasons) or ids.hexdigest() != done.marker["ids"][part]:
        raise InputError.of(
            f"the {row} documents of part {part} are not the {len(reasons)} that were signed",
            "the rows that were dropped would be the wrong ones",
            f"sign the part again: remove {_part_folder(folder, part)}, {folder / 'match'} "
            f"and {folder / 'cluster'}",
        )


# Signing


def _part_files(config: MinHashConfig) -> list[str]:
    names = ["exact.bin", *(f"band-{band:02d}.bin" for band in range(config.bands))]
    return names + ["sketch.bin"] * bool(config.bands and config.verify is not None)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text) + 64
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _sign_batch(
    batch: Sequence[Document], first: int, files: Sequence[BinaryIO], config: MinHashConfig
) -> None:
    """Append the records of consecutive documents, the first of which has the number `first`."""
    texts = [document.text.encode() for document in batch]
    exact = np.zeros(len(batch), dtype=_EXACT)
    digests = b"".join(xxhash.xxh3_128_digest(normalise(text)) for text in texts)
    pairs = np.frombuffer(digests, dtype=">u8").reshape(-1, 2)
    exact["hash"], exact["low"] = pairs[:, 0], pairs[:, 1]
    exact["number"] = np.arange(first, first + len(batch), dtype=np.uint64)
    files[0].write(exact.tobytes())
    if not config.bands:
        return
    rows = np.zeros((len(batch), config.num_hashes), dtype=np.uint32)
    known = np.zeros(len(batch), dtype=bool)
    for code in (False, True):
        chosen = [i for i, document in enumerate(batch) if is_code(document) is code]
        if chosen:
            rows[chosen], known[chosen] = signatures(
                [texts[i] for i in chosen], code=code, config=config
            )
    records = np.empty(int(known.sum()), dtype=_BAND)
    records["number"] = exact["number"][known]
    for file, hashes in zip(files[1:], band_hashes(rows[known], config), strict=False):
        records["hash"] = hashes
        file.write(records.tobytes())
    if config.verify is not None:
        files[-1].write(sketch(rows).tobytes())


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


def _chunks(path: Path) -> Iterator[U64]:
    """Yield the edges of a file, `[n, 2]`."""
    with open(path, "rb") as file:
        while data := file.read(16 * CHUNK):
            yield np.frombuffer(data, dtype="<u8").reshape(-1, 2)


def _reasons_of(
    parents: NDArray[np.int64], reasons: NDArray[np.uint8], start: int, stop: int
) -> NDArray[np.uint8]:
    out = np.empty(stop - start, dtype=np.uint8)
    for low in range(start, stop, CHUNK):
        nodes = np.arange(low, min(low + CHUNK, stop))
        moved = roots_of(parents, nodes) != nodes
        exact = np.asarray(reasons[nodes])
        out[low - start : low - start + len(nodes)] = np.where(moved & (exact == 0), 2, exact)
    return out


def _identity(document: Document) -> bytes:
    return f"{document.id} {len(document.text)}\n".encode()


def _part_folder(folder: Path, part: int) -> Path:
    return folder / "sign" / f"{part:05d}"


def _signed_with(config: MinHashConfig) -> str:
    """Hash what the files of a part depend on: all but the value of `verify`."""
    fields = dataclasses.asdict(config) | {"verify": config.verify is not None}
    algorithm = None
    if config.bands:
        import rensa

        algorithm = rensa.RMinHash.ALGORITHM_VERSION
    return fingerprint(FORMAT_VERSION, "config", fields, algorithm)


def _part(folder: Path, part: int, config: MinHashConfig) -> DoneFolder:
    done = done_folder(_part_folder(folder, part), None, f"sign part {part}")
    if done.marker["config"] != _signed_with(config):
        raise InputError.of(
            f"{done.path} was signed with another config",
            "signatures of different kinds cannot be compared",
            f"remove {folder}, or give the config it was made with",
        )
    return done
