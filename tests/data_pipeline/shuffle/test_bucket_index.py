"""The files of every bucket, collected from the markers of all ranks."""

import json
import random
import tracemalloc
from pathlib import Path

import pytest

from data_pipeline.shuffle import bucket_index
from data_pipeline.shuffle.bucket_index import drop_index, open_index
from data_pipeline.tasks.markers import write_marker
from loopcoder.errors import InputError

SIDES = ("text", "code")


def write_ranks(folder: Path, rng: random.Random, ranks: int, buckets: int) -> None:
    for rank in range(ranks):
        kinds = rng.sample([("text", ""), ("code", "Go"), ("code", "C"), ("code", "Lua")], 2)
        files = {
            f"bucket-{b:05}/rank-{rank:05}.docs": {
                "bytes": rng.randrange(1000),
                "documents": {},
                "tokens": {rng.choice(SIDES): rng.randrange(1, 1000)},
                "xxh3_128": f"{rng.getrandbits(128):032x}",
            }
            for b in range(buckets)
            if rng.random() < 0.8
        }
        write_marker(
            folder / f"rank-{rank:05}.json", "made", num_ranks=ranks, kinds=kinds, files=files
        )


def test_every_file_is_found_in_its_bucket(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks, buckets = rng.randrange(1, 9), rng.randrange(1, 9)
    write_ranks(tmp_path, rng, ranks, buckets)
    monkeypatch.setattr(bucket_index, "_BUFFER_BYTES", rng.choice([1, 500, 1 << 20]))
    index = open_index(tmp_path, "made", SIDES, buckets)
    seen = {}
    for bucket in range(buckets):
        for path, entry, kinds in index.files(bucket):
            assert path.parent.name == f"bucket-{bucket:05}"
            seen[str(path.relative_to(tmp_path))] = entry, [index.kinds[k] for k in kinds]
    tokens = {domain: [0] * buckets for domain in SIDES}
    for path in tmp_path.glob("rank-*.json"):
        marker = json.loads(path.read_text())
        for name, entry in marker["files"].items():
            assert seen.pop(name) == (entry, [tuple(kind) for kind in marker["kinds"]])
            for domain, count in entry["tokens"].items():
                tokens[domain][int(name[7:12])] += count
    assert not seen
    assert index.tokens == tokens
    assert not list(tmp_path.glob("*.tmp"))
    # it is read, not made again; and made again once it was dropped
    for path in tmp_path.glob("rank-*.json"):
        path.unlink()
    assert open_index(tmp_path, "made", SIDES, buckets) == index
    with pytest.raises(InputError, match="fingerprint"):
        open_index(tmp_path, "other", SIDES, buckets)
    drop_index(tmp_path)
    with pytest.raises(InputError, match="1 of 1 ranks of pass a are not done"):
        open_index(tmp_path, "made", SIDES, buckets)


def test_memory_does_not_grow_with_ranks(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ranks(tmp_path, rng, 60, 300)
    monkeypatch.setattr(bucket_index, "_BUFFER_BYTES", 50_000)
    size = sum(path.stat().st_size for path in tmp_path.glob("rank-*.json"))
    tracemalloc.start()
    index = open_index(tmp_path, "made", SIDES, 300)
    found = sum(1 for _ in index.files(7))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found > 20
    assert peak < size / 3, (peak, size)
