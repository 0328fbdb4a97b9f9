"""The shuffle: the same shards whoever ran what when, exact proportions, clear errors."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.shuffle import bucket_reader
from data_pipeline.shuffle.bucket_index import Indexed, files_of, write_index
from data_pipeline.shuffle.bucket_reader import Bucket
from data_pipeline.shuffle.buckets import Record, ShuffleConfig, num_buckets, to_buckets
from data_pipeline.shuffle.shards import Shard, Total, assemble, cut, total_of
from loopcoder.config.mixture import lowest_terms
from loopcoder.data.indexed import check_pair, token_dtype
from loopcoder.data.labels import LABELS, Label
from loopcoder.errors import InputError

EOD = 7
KINDS = [
    Label("text", "Text", "0-files"),
    Label("code", "Java", "0-files"),
    Label("code", "C", "0-files"),
    Label("code", "C", "1-hf"),
    Label("code", "Rust", "1-hf"),
]


def make(seed: int, number: int, vocab_size: int = 600) -> list[Record]:
    """Documents of 1 to 200 tokens, a tenth of them with a second copy."""
    g = random.Random(seed)
    records = []
    for i in range(number):
        label = g.choice(KINDS)
        ids = [*(g.randrange(8, vocab_size) for _ in range(g.randrange(200))), EOD]
        for copy in range(1, 2 + (g.random() < 0.1)):
            records.append(Record(np.array(ids), label, f"d{i}", copy))
    return records


def settings(**fields: Any) -> ShuffleConfig:
    defaults: dict[str, Any] = {
        "vocab_size": 600,
        "eod_id": EOD,
        "seq_length": 32,
        "num_buckets": 5,
        "weights": {"text": 1, "code": 1},
        "seed": 3,
    }
    return ShuffleConfig(**(defaults | fields))


def into_buckets(
    folder: Path,
    config: ShuffleConfig,
    chunks: list[list[Record]],
    order: Any = None,
    **how: Any,
) -> Indexed:
    """Do the first half, the chunks in any order."""
    g = random.Random(order)
    found = {}
    for chunk in g.sample(range(len(chunks)), len(chunks)):
        found[chunk] = to_buckets(iter(chunks[chunk]), folder, chunk, config, **how)
    ordered = [(found[i][0], found[i][1].__getitem__) for i in range(len(chunks))]
    return write_index(folder, ordered, config.weights, config.num_buckets)


def shard(
    bucket: int, folder: Path, indexed: Indexed, out: Path, config: ShuffleConfig
) -> dict[str, Shard]:
    """Write the shards of one bucket."""

    def open_bucket(number: int) -> Bucket:
        files = files_of(folder, number)
        whole = number == bucket
        return Bucket(number, files, indexed.kinds, config, work=folder.parent, whole=whole)

    out.mkdir(parents=True, exist_ok=True)
    return assemble(bucket, open_bucket, indexed, KINDS, out, config)


def run(
    folder: Path, config: ShuffleConfig, chunks: list[list[Record]], order: Any = None, **how: Any
) -> list[dict[str, Shard]]:
    """Both halves, the tasks of each in any order; return the shards of every bucket."""
    g = random.Random(order)
    indexed = into_buckets(folder / "buckets", config, chunks, g.random(), **how)
    shards = {
        bucket: shard(bucket, folder / "buckets", indexed, folder / "out", config)
        for bucket in g.sample(range(config.num_buckets), config.num_buckets)
    }
    return [shards[bucket] for bucket in range(config.num_buckets)]


def totals(shards: list[dict[str, Shard]]) -> dict[str, Total]:
    return {domain: total_of(domain, [s[domain] for s in shards]) for domain in shards[0]}


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def documents(out: Path, config: ShuffleConfig, prefix: str) -> Iterator[tuple[int, ...]]:
    ids = np.fromfile(out / f"{prefix}.bin", dtype=token_dtype(config.vocab_size))
    for part in np.split(ids, np.flatnonzero(ids == config.eod_id) + 1)[:-1]:
        yield tuple(part.tolist())


@pytest.mark.parametrize("vocab_size", [600, 70_000])
def test_same_shards_for_any_chunks(tmp_path: Path, seed: int, vocab_size: int) -> None:
    records = make(seed, 800, vocab_size)
    config = settings(vocab_size=vocab_size)
    g = random.Random(seed)
    results = []
    for i, num_chunks in enumerate((1, 2, 5, 5)):
        chunks: list[list[Record]] = [[] for _ in range(num_chunks)]
        for record in g.sample(records, len(records)):
            chunks[g.randrange(num_chunks - (i == 3))].append(record)  # the last time one is empty
        shards = run(
            tmp_path / str(i), config, chunks, g.random(), buffer_bytes=g.randrange(1000, 10**6)
        )
        results.append((content(tmp_path / str(i) / "out"), totals(shards)))
    assert all(result == results[0] for result in results)
    assert sum(name.endswith(".bin") for name in results[0][0]) == 10
    assert all(results[0][0].values())
    run(tmp_path / "other", replace(config, seed=4), [records])
    other = content(tmp_path / "other" / "out")
    alike = {name for name in other if other[name] == results[0][0][name]}
    assert all(name.startswith("text") and name.endswith(LABELS) for name in alike), (
        "the documents of text all have the same label"
    )


def test_every_document_is_there_or_counted(tmp_path: Path, seed: int) -> None:
    records, config = make(seed, 900), settings()
    shards = run(tmp_path, config, [records[::2], records[1::2]])
    given = Counter(tuple(r.ids.tolist()) for r in records)
    found = Counter(
        document
        for of_bucket in shards
        for s in of_bucket.values()
        for document in documents(tmp_path / "out", config, s.written.prefix)
    )
    notes: Counter[str] = Counter()
    found_totals = totals(shards)
    for total in found_totals.values():
        assert total.tally.rows_in == total.tally.rows_out + total.tally.drops["left_over"]
        notes.update(total.tally.notes)
        notes["dropped"] += total.tally.drops["left_over"]
    tokens = sum(total.tokens for total in found_totals.values())
    assert tokens + notes["tokens_left_over"] == sum(len(r.ids) for r in records)
    # what is not there whole was cut in two, cut off or dropped
    odd = sum((found - given).values())
    assert odd <= notes["cut_in_two"] + notes["last_token_replaced_by_eod"] + 10
    assert sum((given - found).values()) <= notes["dropped"] + odd
    kinds: dict[str, Counter[str]] = {domain: Counter() for domain in ("text", "code")}
    for r in records:
        kinds[r.label.domain][str(r.label.language)] += len(r.ids)
    for domain, total in found_totals.items():
        for language, numbers in total.languages.items():
            assert 0 <= kinds[domain][language] - numbers["tokens"] <= notes["tokens_left_over"]


def test_lost_tokens_are_a_bug(tmp_path: Path, seed: int) -> None:
    shards = run(tmp_path, settings(), [make(seed, 300)])
    wrong = shards[2]["code"]
    wrong = replace(wrong, losses=wrong.losses._replace(tokens_dropped=10**6))
    with pytest.raises(RuntimeError, match="tokens do not add up"):
        total_of("code", [shards[0]["code"], wrong])


def test_copies_lie_apart_and_languages_are_mixed(tmp_path: Path, seed: int) -> None:
    config = settings(num_buckets=1, seq_length=4)
    records = []
    for i in range(600):
        label = (KINDS[0], KINDS[2], KINDS[1])[i * 3 // 600]
        for copy in (1, 2):
            records.append(
                Record(np.array([8 + i % 590, i // 590 + 8, EOD]), label, f"{seed}{i}", copy)
            )
    run(tmp_path, config, [records])
    order = [d[0] for d in documents(tmp_path / "out", config, "code-00000")]
    assert sum(a == b for a, b in itertools.pairwise(order)) < 10
    switches = np.abs(np.diff(np.array(order) >= 8 + 400)).sum()
    assert 0.4 < switches / len(order) < 0.6


@pytest.mark.parametrize("mixture", [{"text": 1, "code": 1}, {"text": 1, "code": 2.5}])
def test_cut_is_exact(rng: random.Random, mixture: dict[str, float]) -> None:
    weights = lowest_terms(mixture)
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
    """Of megatron-core's blend of all shards, text, code, text, code, ..., with equal weights."""
    from megatron.core.datasets import helpers

    config = settings(num_buckets=7, seq_length=4)
    shards = run(tmp_path, config, [make(seed, 1500)])
    names = [s.written.prefix for of_bucket in shards for s in of_bucket.values()]
    assert names[:4] == ["text-00000", "code-00000", "text-00001", "code-00001"]
    for prefixes, sizes in (
        (names, [s.sequences for of_bucket in shards for s in of_bucket.values()]),
        ([f"{domain}{i}" for i in range(1000) for domain in ("text", "code")], [64] * 2000),
    ):
        size = sum(sizes)
        assert size > 4 * 1024
        dataset = np.zeros(size, dtype=np.int16)
        sample = np.zeros(size, dtype=np.int64)
        weights = np.full(len(prefixes), 1 / len(prefixes))
        helpers.build_blending_indices(dataset, sample, weights, len(prefixes), size, False)
        is_code = np.array([name.startswith("code") for name in prefixes])[dataset]
        for start in range(0, size - 1023, 1024):
            assert is_code[start : start + 1024].sum() == 512
        # all shards end together: none is read twice, none is left unread
        assert np.bincount(dataset).tolist() == sizes


def test_megatron_reads_as_many_sequences(tmp_path: Path, seed: int) -> None:
    from types import SimpleNamespace

    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    config = settings(num_buckets=2)
    shards = run(tmp_path, config, [make(seed, 400)])
    for s in (s for of_bucket in shards for s in of_bucket.values()):
        prefix = str(tmp_path / "out" / s.written.prefix)
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
        assert len(dataset) == s.sequences
        assert len(dataset[len(dataset) - 1]["tokens"]) == config.seq_length


def test_what_a_killed_task_left_is_replaced(tmp_path: Path, seed: int) -> None:
    """Files of one that began with the same documents, wherever it ended."""
    g = random.Random(seed)
    records, config = make(seed, 300), settings()
    run(tmp_path / "whole", config, [records])
    folder = tmp_path / "killed"
    begun = records[: g.randrange(1, len(records))]
    to_buckets(begun, folder / "buckets", 0, config, buffer_bytes=2000)
    cut_off = g.choice(list((folder / "buckets").rglob("*.docs")))
    cut_off.write_bytes(cut_off.read_bytes()[: g.randrange(cut_off.stat().st_size)])
    (folder / "buckets" / "index").mkdir()
    (folder / "buckets" / "index" / "00001.jsonl").write_text('[0, {"bytes": 3}, []]')
    (folder / "out").mkdir()
    (folder / "out" / "text-00003.bin.tmp").write_bytes(g.randbytes(5000))
    run(folder, config, [records])
    assert content(folder / "out") == content(tmp_path / "whole" / "out")
    assert content(folder / "buckets" / "index") == content(
        tmp_path / "whole" / "buckets" / "index"
    )


def test_altered_buckets(tmp_path: Path, rng: random.Random, seed: int) -> None:
    config, folder = settings(), tmp_path / "b"
    indexed = into_buckets(folder, config, [make(seed, 300)])
    path = folder / "bucket-00002" / "00000.docs"
    good = path.read_bytes()
    path.write_bytes(good[: rng.randrange(len(good))])
    with pytest.raises(InputError, match=r"cannot use .*00000.docs: it has .* were written"):
        shard(2, folder, indexed, tmp_path / "out", config)
    bad = bytearray(good)
    bad[rng.randrange(len(good))] ^= rng.randrange(1, 256)
    path.write_bytes(bad)
    with pytest.raises(InputError, match="other content than was written") as e:
        shard(2, folder, indexed, tmp_path / "out", config)
    assert e.value.problems[0].fix == f"delete {tmp_path} and start the same command again"
    path.unlink()
    with pytest.raises(InputError, match="cannot use"):
        shard(2, folder, indexed, tmp_path / "out", config)
    path.write_bytes(good)
    shard(2, folder, indexed, tmp_path / "out", config)


def test_unfit_documents(tmp_path: Path) -> None:
    for ids, message in (
        ([9, 9], "EOD at its end only"),
        ([9, EOD, 9, EOD], "EOD at its end only"),
        ([], "is empty"),
        ([600, EOD], "outside the vocabulary"),
        ([-1, EOD], "outside the vocabulary"),
    ):
        records = [
            Record(np.array([8, EOD]), KINDS[0], "fine"),
            Record(np.array(ids, dtype=np.int64), KINDS[0], "odd"),
        ]
        with pytest.raises(InputError, match=f"document odd .*{message}"):
            to_buckets(records, tmp_path, 0, settings(num_buckets=1))
    with pytest.raises(InputError, match="of the domain 'music'"):
        to_buckets(
            [Record(np.array([EOD]), Label("music", "x", "y"), "d")], tmp_path, 0, settings()
        )


def test_a_document_that_comes_twice(tmp_path: Path, seed: int) -> None:
    config = settings(num_buckets=1)
    records = make(seed, 50)
    indexed = into_buckets(tmp_path / "b", config, [records[:1], records])
    with pytest.raises(InputError, match=r"(?s)has 1 document twice.*delete .* report it"):
        shard(0, tmp_path / "b", indexed, tmp_path / "out", config)


def test_number_of_buckets() -> None:
    assert num_buckets(10**12, 10**9, 76_800, 128 << 30) == 74
    assert num_buckets(1000, 10, 76_800, 128 << 30) == 1
    assert num_buckets(10**10, 2**31, 600, 1 << 50) == 2


def test_ids_are_gathered_in_chunks(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, config = make(seed, 200), settings()
    run(tmp_path / "whole", config, [records])
    monkeypatch.setattr(bucket_reader, "_CHUNK_TOKENS", 50)
    run(tmp_path / "pieces", config, [records])
    assert content(tmp_path / "whole" / "out") == content(tmp_path / "pieces" / "out")
    for path in (tmp_path / "pieces" / "out").glob("*.bin"):
        check_pair(path.with_suffix(""), vocab_size=600, eod_id=EOD)
