"""The shuffle: the same shards whoever ran what when, exact proportions, clear errors."""

from __future__ import annotations

import itertools
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.shuffle import buckets
from data_pipeline.shuffle.buckets import Record, ShuffleConfig, num_buckets, to_buckets
from data_pipeline.shuffle.shards import assemble, blend, cut, seal
from data_pipeline.shuffle.validate import validate
from loopcoder.data.indexed import check_pair, token_dtype
from loopcoder.errors import InputError

EOD = 7
KINDS = [("text", "Text"), ("code", "Java"), ("code", "C"), ("code", "Rust")]


def make(seed: int, number: int, vocab_size: int = 600) -> list[Record]:
    """Documents of 1 to 200 tokens, a tenth of them with a second copy."""
    g = random.Random(seed)
    records = []
    for i in range(number):
        domain, language = g.choice(KINDS)
        ids = [*(g.randrange(8, vocab_size) for _ in range(g.randrange(200))), EOD]
        for copy in range(1, 2 + (g.random() < 0.1)):
            records.append(Record(np.array(ids), domain, language, f"d{i}", copy))
    return records


def settings(**fields: Any) -> ShuffleConfig:
    defaults: dict[str, Any] = {
        "source": "test",
        "vocab_size": 600,
        "eod_id": EOD,
        "seq_length": 32,
        "num_buckets": 5,
        "seed": 3,
    }
    return ShuffleConfig(**(defaults | fields))


def run(
    folder: Path, config: ShuffleConfig, parts: list[list[Record]], order: Any = None, **how: Any
) -> dict[str, Any]:
    """Both passes, the tasks of each in any order."""
    g = random.Random(order)
    for rank in g.sample(range(len(parts)), len(parts)):
        to_buckets(iter(parts[rank]), folder / "buckets", rank, len(parts), config, **how)
    for bucket in g.sample(range(config.num_buckets), config.num_buckets):
        assemble(bucket, folder / "buckets", folder / "out", config)
    return seal(folder / "out", config)


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def documents(out: Path, config: ShuffleConfig, prefix: str) -> Iterator[tuple[int, ...]]:
    ids = np.fromfile(out / f"{prefix}.bin", dtype=token_dtype(config.vocab_size))
    for part in np.split(ids, np.flatnonzero(ids == config.eod_id) + 1)[:-1]:
        yield tuple(part.tolist())


@pytest.mark.parametrize("vocab_size", [600, 70_000])
def test_same_shards_for_any_ranks(tmp_path: Path, seed: int, vocab_size: int) -> None:
    records = make(seed, 800, vocab_size)
    config = settings(vocab_size=vocab_size)
    g = random.Random(seed)
    results = []
    for i, num_ranks in enumerate((1, 2, 5, 5)):
        parts: list[list[Record]] = [[] for _ in range(num_ranks)]
        for record in g.sample(records, len(records)):
            parts[g.randrange(num_ranks - (i == 3))].append(record)  # the last time one is empty
        run(tmp_path / str(i), config, parts, g.random(), buffer_bytes=g.randrange(1000, 10**6))
        results.append(content(tmp_path / str(i) / "out"))
        assert validate(tmp_path / str(i) / "out") == []
    assert all(result == results[0] for result in results)
    assert sum(name.endswith(".bin") for name in results[0]) == 10
    assert all(results[0].values())
    other = run(tmp_path / "other", replace(config, seed=4), [records])
    assert {f["xxh3_128"] for f in other["files"].values()}.isdisjoint(
        f["xxh3_128"] for f in json.loads(results[0]["shards.json"])["files"].values()
    )


def test_every_document_is_there_or_counted(tmp_path: Path, seed: int) -> None:
    records, config = make(seed, 900), settings()
    manifest = run(tmp_path, config, [records[::2], records[1::2]])
    given = Counter(tuple(r.ids.tolist()) for r in records)
    found = Counter(
        d for e in manifest["blend"] for d in documents(tmp_path / "out", config, e["prefix"])
    )
    notes: Counter[str] = Counter()
    for stage in manifest["stages"]:
        assert stage["rows_in"] == stage["rows_out"] + stage["drops"]["left_over"]
        notes.update(stage["notes"])
        notes["dropped"] += stage["drops"]["left_over"]
    tokens = sum(domain["tokens"] for domain in manifest["domains"].values())
    assert tokens + notes["tokens_left_over"] == sum(len(r.ids) for r in records)
    # what is not there whole was cut in two, cut off or dropped
    odd = sum((found - given).values())
    assert odd <= notes["cut_in_two"] + notes["last_token_replaced_by_eod"] + 10
    assert sum((given - found).values()) <= notes["dropped"] + odd
    kinds: dict[str, Counter[str]] = {domain: Counter() for domain in ("text", "code")}
    for r in records:
        kinds[r.domain][r.language] += len(r.ids)
    for domain, stats in manifest["domains"].items():
        for language, numbers in stats["languages"].items():
            assert 0 <= kinds[domain][language] - numbers["tokens"] <= notes["tokens_left_over"]


def test_copies_lie_apart_and_languages_are_mixed(tmp_path: Path, seed: int) -> None:
    config = settings(num_buckets=1, seq_length=4)
    records = []
    for i in range(600):
        domain, language = [("text", "Text"), ("code", "C"), ("code", "Java")][i * 3 // 600]
        for copy in (1, 2):
            records.append(
                Record(
                    np.array([8 + i % 590, i // 590 + 8, EOD]), domain, language, f"{seed}{i}", copy
                )
            )
    run(tmp_path, config, [records])
    order = [d[0] for d in documents(tmp_path / "out", config, "code-00000")]
    assert sum(a == b for a, b in itertools.pairwise(order)) < 10
    switches = np.abs(np.diff(np.array(order) >= 8 + 400)).sum()
    assert 0.4 < switches / len(order) < 0.6


@pytest.mark.parametrize("mixture", [{"text": 1, "code": 1}, {"text": 1, "code": 2.5}])
def test_cut_is_exact(rng: random.Random, mixture: dict[str, float]) -> None:
    weights = settings(mixture=mixture).weights
    for _ in range(200):
        shards = rng.randrange(1, 12)
        tokens = {s: [rng.choice([0, rng.randrange(5000)]) for _ in range(shards)] for s in weights}
        for domain in tokens.values():
            domain[rng.randrange(shards)] += 800 * shards
        length = rng.randrange(1, 100)
        pieces = cut(tokens, length, weights)
        sizes = {s: {sum(p.stop - p.start for p in shard) for shard in pieces[s]} for s in weights}
        assert all(len(size) == 1 for size in sizes.values())
        units = {(size.pop() - 1) / length / weights[s] for s, size in sizes.items()}
        assert len(units) == 1
        unit = units.pop()
        # one sequence more would not be there
        assert any(
            sum(tokens[s]) < shards * ((unit + 1) * w * length + 1) for s, w in weights.items()
        )
        for domain in weights:
            for bucket in range(shards):
                used = sorted(p for shard in pieces[domain] for p in shard if p.bucket == bucket)
                assert [p.start for p in used] == [0, *(p.stop for p in used)][: len(used)]
                assert not used or used[-1].stop <= tokens[domain][bucket]
    with pytest.raises(InputError, match=r"data\.build\.shards=1"):
        cut({"text": [5, 5], "code": [90, 90]}, 10, {"text": 1, "code": 1})


def test_every_batch_of_the_blend_is_half_code(tmp_path: Path, seed: int) -> None:
    from megatron.core.datasets import helpers

    config = settings(num_buckets=7, seq_length=4)
    manifest = run(tmp_path, config, [make(seed, 1500)])
    _, weights = blend(tmp_path / "out", manifest)
    prefixes = [entry["prefix"] for entry in manifest["blend"]]
    assert prefixes[:4] == ["text-00000", "code-00000", "text-00001", "code-00001"]
    for names, sizes in (
        (prefixes, [entry["sequences"] for entry in manifest["blend"]]),
        ([f"{domain}{i}" for i in range(1000) for domain in ("text", "code")], [64] * 2000),
    ):
        size = sum(sizes)
        assert size > 4 * 1024
        dataset = np.zeros(size, dtype=np.int16)
        sample = np.zeros(size, dtype=np.int64)
        helpers.build_blending_indices(
            dataset, sample, np.full(len(names), 1 / len(names)), len(names), size, False
        )
        is_code = np.array([name.startswith("code") for name in names])[dataset]
        for start in range(0, size - 1023, 1024):
            assert is_code[start : start + 1024].sum() == 512
        # all shards end together: none is read twice, none is left unread
        assert np.bincount(dataset).tolist() == sizes
    assert weights == [1 / 14] * 14


def test_megatron_reads_as_many_sequences(tmp_path: Path, seed: int) -> None:
    from types import SimpleNamespace

    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    config = settings(num_buckets=2)
    manifest = run(tmp_path, config, [make(seed, 400)])
    for prefix, entry in zip(blend(tmp_path / "out", manifest)[0], manifest["blend"], strict=True):
        theirs = GPTDatasetConfig(
            random_seed=1,
            sequence_length=config.seq_length,
            blend=([prefix], [1.0]),
            split="1,0,0",
            path_to_cache="",
            tokenizer=SimpleNamespace(eod=EOD, vocab_size=None, unique_identifiers={}),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        low = GPTDataset.build_low_level_dataset(prefix, theirs)
        indices = np.arange(GPTDataset.numel_low_level_dataset(low), dtype=np.int32)
        dataset = GPTDataset(low, prefix, indices, None, Split.train, theirs)
        assert len(dataset) == entry["sequences"]
        assert len(dataset[len(dataset) - 1]["tokens"]) == config.seq_length


CRASHING = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.data_pipeline.shuffle.test_shards import make, run, settings
left = {left}
replace = Path.replace
def dying(self, target):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return replace(self, target)
Path.replace = dying
records = make({seed}, 60)
run(Path({folder!r}), settings(num_buckets=2), [records[::2], records[1::2]])
"""


def test_killed_between_any_two_files(tmp_path: Path, seed: int) -> None:
    records, config = make(seed, 60), settings(num_buckets=2)
    parts = [records[::2], records[1::2]]
    run(tmp_path / "whole", config, parts)
    expected = content(tmp_path / "whole" / "out")
    # 2 ranks of 2 buckets and a marker, the index, 2 shards of 4 files and a marker, the manifest
    for left in range(2 * 3 + 1 + 2 * 5 + 1):
        folder = tmp_path / f"killed{left}"
        code = CRASHING.format(
            root=str(Path(__file__).parents[3]), left=left, seed=seed, folder=str(folder)
        )
        died = subprocess.run([sys.executable, "-c", code], check=False, timeout=300)
        assert died.returncode == -signal.SIGKILL
        assert not (folder / "out" / "shards.json").exists()
        run(folder, config, parts, order=left)
        assert content(folder / "out") == expected, left
        assert not list(folder.rglob("*.tmp"))
        shutil.rmtree(folder)
    code = CRASHING.format(
        root=str(Path(__file__).parents[3]), left=18, seed=seed, folder=str(tmp_path / "alive")
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_what_is_done_is_not_done_again(tmp_path: Path, seed: int) -> None:
    config = settings()
    run(tmp_path, config, [make(seed, 300)])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}

    def fail() -> Iterator[Record]:
        raise AssertionError("a done rank is read again")
        yield

    to_buckets(fail(), tmp_path / "buckets", 0, 1, config)
    for bucket in range(5):
        assemble(bucket, tmp_path / "buckets", tmp_path / "out", config)
    for path, time in before.items():
        assert path.name == "shards.json" or path.stat().st_mtime_ns == time
    # another sequence length needs no new buckets, but another folder
    longer = replace(config, seq_length=48)
    to_buckets(fail(), tmp_path / "buckets", 0, 1, longer)
    with pytest.raises(InputError, match="must not mix"):
        assemble(0, tmp_path / "buckets", tmp_path / "out", longer)
    for bucket in range(5):
        assemble(bucket, tmp_path / "buckets", tmp_path / "longer", longer)
    seal(tmp_path / "longer", longer)
    assert validate(tmp_path / "longer") == []
    with pytest.raises(InputError, match="must not mix"):
        to_buckets([], tmp_path / "buckets", 0, 1, replace(config, seed=9))
    with pytest.raises(InputError, match="num_ranks=1"):
        to_buckets([], tmp_path / "buckets", 0, 2, config)


def test_unfinished_passes_are_named(tmp_path: Path, seed: int) -> None:
    config = settings()
    parts = [make(seed, 300), [], []]
    with pytest.raises(InputError, match="1 of 1 ranks of pass a"):
        assemble(0, tmp_path / "b", tmp_path / "out", config)
    to_buckets(parts[1], tmp_path / "b", 1, 3, config)
    with pytest.raises(InputError, match=r"2 of 3 ranks of pass a are not done .*: 0, 2"):
        assemble(0, tmp_path / "b", tmp_path / "out", config)
    to_buckets(parts[0], tmp_path / "b", 0, 3, config)
    to_buckets(parts[2], tmp_path / "b", 2, 3, config)
    assemble(3, tmp_path / "b", tmp_path / "out", config)
    with pytest.raises(InputError, match=r"4 of 5 shards are not done .*: 0, 1, 2, 4"):
        seal(tmp_path / "out", config)
    assert "there is no" in str(validate(tmp_path / "out")[0])


def test_altered_buckets(tmp_path: Path, rng: random.Random, seed: int) -> None:
    config = settings()
    records = make(seed, 300)
    to_buckets(records, tmp_path / "b", 0, 1, config)
    path = tmp_path / "b" / "bucket-00002" / "rank-00000.docs"
    good = path.read_bytes()
    path.write_bytes(good[: rng.randrange(len(good))])
    with pytest.raises(InputError, match=r"cannot use .*rank-00000.docs: it has .* its marker"):
        assemble(2, tmp_path / "b", tmp_path / "out", config)
    bad = bytearray(good)
    bad[rng.randrange(len(good))] ^= rng.randrange(1, 256)
    path.write_bytes(bad)
    with pytest.raises(InputError, match=r"its hash is not the one") as e:
        assemble(2, tmp_path / "b", tmp_path / "out", config)
    assert str(tmp_path / "b" / "rank-00000.json") in e.value.problems[0].fix
    path.unlink()
    with pytest.raises(InputError, match="cannot use"):
        assemble(2, tmp_path / "b", tmp_path / "out", config)
    # a rank whose files are not there is done again
    to_buckets(records, tmp_path / "b", 0, 1, config)
    assert path.read_bytes() == good
    assemble(2, tmp_path / "b", tmp_path / "out", config)
    marker = tmp_path / "b" / "rank-00000.json"
    marker.write_text(marker.read_text()[:50])
    with pytest.raises(InputError, match=r"cannot read .*rank-00000.json"):
        to_buckets(records, tmp_path / "b", 0, 1, config)
    shutil.rmtree(tmp_path / "b" / "index")
    with pytest.raises(InputError, match=r"cannot read .*rank-00000.json"):
        assemble(1, tmp_path / "b", tmp_path / "out", config)


def test_unfit_documents(tmp_path: Path) -> None:
    for ids, message in (
        ([9, 9], "EOD at its end only"),
        ([9, EOD, 9, EOD], "EOD at its end only"),
        ([], "is empty"),
        ([600, EOD], "outside the vocabulary"),
        ([-1, EOD], "outside the vocabulary"),
    ):
        records = [
            Record(np.array([8, EOD]), "text", "Text", "fine"),
            Record(np.array(ids, dtype=np.int64), "text", "Text", "odd"),
        ]
        with pytest.raises(InputError, match=f"document odd .*{message}"):
            to_buckets(records, tmp_path, 0, 1, settings(num_buckets=1))
    with pytest.raises(InputError, match="of the domain 'music'"):
        to_buckets([Record(np.array([EOD]), "music", "x", "d")], tmp_path, 0, 1, settings())


def test_a_document_that_comes_twice(tmp_path: Path, seed: int) -> None:
    config = settings(num_buckets=1)
    records = make(seed, 50)
    for rank in (0, 1):
        to_buckets(records if rank else records[:1], tmp_path / "b", rank, 2, config)
    with pytest.raises(InputError, match="has 1 documents twice"):
        assemble(0, tmp_path / "b", tmp_path / "out", config)


def test_buckets_fit_in_half_the_memory(tmp_path: Path, seed: int) -> None:
    config = settings(num_buckets=1)
    to_buckets(make(seed, 300), tmp_path / "b", 0, 1, config)
    with pytest.raises(InputError, match=r"(?s)bucket 0 has .* bytes.*half") as e:
        assemble(0, tmp_path / "b", tmp_path / "out", config, memory_bytes=10_000)
    enough = int(e.value.problems[0].fix.split("=")[1].split(",")[0])
    config = settings(num_buckets=enough, seq_length=2)
    to_buckets(make(seed, 300), tmp_path / "c", 0, 1, config)
    assert num_buckets(10**12, 10**9, 76_800, 128 << 30) == 74
    assert num_buckets(1000, 10, 76_800, 128 << 30) == 1
    assert num_buckets(10**10, 2**31, 600, 1 << 50) == 2


def test_full_disk(tmp_path: Path, seed: int) -> None:
    """A limit on the size of files stands for the disk: writing fails in the middle of a file."""
    config = settings(num_buckets=1)
    records = make(seed, 400)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for step in ("buckets", "shards"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
        try:
            with pytest.raises(InputError, match="no space left") as e:
                if step == "buckets":
                    to_buckets(records, tmp_path / "b", 0, 1, config, buffer_bytes=20_000)
                else:
                    assemble(0, tmp_path / "b", tmp_path / "out", config)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "start the same command again" in e.value.problems[0].fix
        if step == "buckets":
            assert not list((tmp_path / "b").glob("*.json"))
            to_buckets(records, tmp_path / "b", 0, 1, config)
    assert not list((tmp_path / "out").glob("shard*"))
    assemble(0, tmp_path / "b", tmp_path / "out", config)
    seal(tmp_path / "out", config)
    assert validate(tmp_path / "out") == []


def test_ids_are_gathered_in_chunks(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, config = make(seed, 200), settings()
    run(tmp_path / "whole", config, [records])
    monkeypatch.setattr(buckets, "_CHUNK_TOKENS", 50)
    run(tmp_path / "chunks", config, [records])
    assert content(tmp_path / "whole" / "out") == content(tmp_path / "chunks" / "out")
    for path in (tmp_path / "chunks" / "out").glob("*.bin"):
        check_pair(path.with_suffix(""), vocab_size=600, eod_id=EOD, read_ends=True)
