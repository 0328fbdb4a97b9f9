"""The files of every bucket, collected from what all chunks sent there."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_pipeline.shuffle import bucket_index
from data_pipeline.shuffle.bucket_index import files_of, write_index
from data_pipeline.shuffle.buckets import Bucketed, bucket_file
from loopcoder.data.labels import Label
from loopcoder.storage.files import FileEntry

DOMAINS = ("text", "code")
KINDS = [
    Label("text", "", "a"),
    Label("code", "Go", "a"),
    Label("code", "Go", "b"),
    Label("code", "C", "b"),
]
Chunk = tuple[Bucketed, Callable[[Path], FileEntry]]


def some_chunk(folder: Path, seed: int, chunk: int, buckets: int) -> Chunk:
    rng = random.Random(seed + chunk)
    kinds = rng.sample(KINDS, 2)
    used = [b for b in range(buckets) if rng.random() < 0.8]
    tokens = {b: {rng.choice(DOMAINS): rng.randrange(1, 1000)} for b in used}
    files: dict[Path, FileEntry] = {
        bucket_file(folder, b, chunk): {
            "bytes": rng.randrange(1000),
            "xxh3_128": f"{rng.getrandbits(128):032x}",
        }
        for b in used
    }
    return Bucketed(kinds, 1, tokens), files.__getitem__


def test_every_file_is_found_in_its_bucket(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    num_chunks, buckets = rng.randrange(1, 9), rng.randrange(1, 9)
    chunks = [some_chunk(tmp_path, seed, i, buckets) for i in range(num_chunks)]
    monkeypatch.setattr(bucket_index, "_BUFFER_BYTES", rng.choice([1, 500, 1 << 20]))
    indexed = write_index(tmp_path, chunks, DOMAINS, buckets)
    seen = {}
    for bucket in range(buckets):
        for path, entry, kinds in files_of(tmp_path, bucket):
            assert path.parent.name == f"bucket-{bucket:05}"
            seen[path] = entry, [indexed.kinds[k] for k in kinds]
    tokens = {domain: [0] * buckets for domain in DOMAINS}
    for chunk, (bucketed, entry_of) in enumerate(chunks):
        for bucket, of_domain in bucketed.tokens.items():
            path = bucket_file(tmp_path, bucket, chunk)
            assert seen.pop(path) == (entry_of(path), bucketed.kinds)
            for domain, count in of_domain.items():
                tokens[domain][bucket] += count
    assert not seen
    assert indexed.tokens == tokens
    # done again over what is there, it is the same
    before = {p: p.read_bytes() for p in (tmp_path / "index").iterdir()}
    assert write_index(tmp_path, chunks, DOMAINS, buckets) == indexed
    assert {p: p.read_bytes() for p in (tmp_path / "index").iterdir()} == before


@pytest.mark.data_full
def test_memory_does_not_grow_with_chunks(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_index, "_BUFFER_BYTES", 20_000)

    def chunks(count: int) -> Iterator[Chunk]:
        return (some_chunk(tmp_path, seed, chunk, 100) for chunk in range(count))

    peaks = []
    for count in (3, 60):
        tracemalloc.start()
        write_index(tmp_path, chunks(count), DOMAINS, 100)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(files_of(tmp_path, 7)) > 20
    assert peaks[1] < 1.5 * peaks[0], peaks
