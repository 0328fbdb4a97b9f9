"""Sequences found by arithmetic: which ones, in which order, and what is compared before they are
used."""

from __future__ import annotations

import errno
import json
import os
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data_pipeline.driver import prepare
from loopcoder.config.data import DataConfig, ResolvedStage, StageConfig
from loopcoder.config.schema import Config
from loopcoder.data import blocks, labels, order, packed
from loopcoder.data.blend import Blend, check_stages, reader_of
from loopcoder.data.corpus import Corpus, load_corpus, opening
from loopcoder.data.megatron import MegatronReader
from loopcoder.data.order import Order
from loopcoder.data.packed import PackedReader
from loopcoder.data.sampler import Position
from loopcoder.errors import InputError, LoopcoderError
from tests.configs import small_config

BLOCK = 128
SEEDS = (1, 0, 0)
GOLDEN = [1, 6, 0, 9, 3, 5, 10, 8, 4, 11, 2, 7]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 tokens, so that the shards of a test have many."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(order, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(order, "_LEAST_TOKENS", BLOCK // 2)
    monkeypatch.setattr(labels, "STRIDE", BLOCK // 4)
    monkeypatch.setattr(packed, "STRIDE", BLOCK // 4)
    monkeypatch.setattr(blocks, "PIECE", 60)


@pytest.fixture
def sharded(small_blocks: None, data: Callable[..., DataConfig], seed: int) -> Corpus:
    """Three shards a domain, with digests of small blocks."""
    fields = {"shards": 3, "seq_length": random.Random(seed).randint(11, 24)}
    return prepare(data(**fields), report=lambda _: None)


def cut(corpus: Corpus, domain: str, length: int) -> list[list[NDArray[np.int64]]]:
    """All sequences of each shard, in the order of the file."""
    shards = []
    for prefix in corpus.prefixes(domain, "train"):
        ids = np.fromfile(prefix + ".bin", np.uint16).astype(np.int64)
        starts = range(0, len(ids) - length, length)
        shards.append([ids[start : start + length + 1] for start in starts])
    return shards


def epoch(reader: PackedReader, number: int) -> list[list[int]]:
    return [reader.row(number, i).ids.tolist() for i in range(int(reader.sequences.sum()))]


@pytest.mark.parametrize("domain", ["text", "code"])
def test_an_epoch_is_every_sequence_of_every_shard_once(
    sharded: Corpus, seed: int, domain: str
) -> None:
    for length in (int(sharded.manifest["seq_length"]), random.Random(seed).randint(5, 400)):
        wanted = [row.tolist() for shard in cut(sharded, domain, length) for row in shard]
        reader = PackedReader(sharded, domain, length, SEEDS)
        epochs = [epoch(reader, number) for number in range(3)]
        assert all(sorted(rows) == sorted(wanted) for rows in epochs)
        if len(wanted) > 8:
            assert len({str(rows) for rows in [wanted, *epochs]}) == 4


def test_in_the_order_of_the_files_it_reads_what_megatron_reads(
    sharded: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPTDataset with the identity for each of its own permutations, and the identity for ours."""

    class Unshuffled(np.random.RandomState):
        def shuffle(self, x: Any) -> None:
            pass

    class Ordered:
        def permutation(self, count: int) -> NDArray[np.int64]:
            return np.arange(count)

    monkeypatch.setattr(np.random, "RandomState", Unshuffled)
    monkeypatch.setattr(np.random, "default_rng", lambda _: Ordered())
    monkeypatch.setattr(Order, "permutation", lambda self, count, *of: np.arange(count))
    length = int(sharded.manifest["seq_length"])
    for domain in sharded.domains:
        theirs = MegatronReader(sharded, domain, length, SEEDS)
        ours = PackedReader(sharded, domain, length, SEEDS)
        assert ours.sequences.tolist() == theirs.sequences.tolist()
        for i in range(int(ours.sequences.sum())):
            assert all(map(torch.equal, ours.row(0, i)[:2], theirs.row(0, i)[:2]))


def test_sequences_that_are_read_together_lie_in_one_block(sharded: Corpus) -> None:
    length = int(sharded.manifest["seq_length"])
    reader = PackedReader(sharded, "code", length, SEEDS)
    places = [reader.place(1, i) for i in range(int(reader.sequences.sum()))]
    visited = [(shard, token * 2 // BLOCK) for shard, token in places]
    entered = [a for a, b in zip(visited, [None, *visited], strict=False) if a != b]
    assert len(entered) == len(set(entered)) > 6, "no block is entered twice"


@pytest.mark.parametrize(("tokens", "stretches"), [(40_000, 1), (1 << 20, 16), (3 << 20, 24)])
def test_a_small_shard_has_stretches_too(tokens: int, stretches: int) -> None:
    """Of a power of two of tokens: 65,536, or what leaves 16 of them or more."""
    firsts = Order([tokens + 1], 2, 100, SEEDS, 100)._borders(0) // 100
    assert len(firsts) - 1 == stretches
    assert firsts[0] == 0
    assert firsts[-1] == tokens // 100
    assert np.ptp(np.diff(firsts[:-1])) <= 1 if stretches > 1 else True


@pytest.mark.parametrize(("tokens", "stretches"), [(40_000, 1), (3 << 20, 1), (40 << 20, 2)])
def test_a_shard_below_a_block_is_shuffled_as_a_whole(
    monkeypatch: pytest.MonkeyPatch, tokens: int, stretches: int
) -> None:
    """With data.reader=shuffled a sixteenth of an epoch comes from everywhere in a small shard."""
    monkeypatch.setattr(order, "BLOCK_BYTES", 64 << 20)
    whole = Order([tokens + 1], 2, 100, SEEDS, 100, 1)
    assert len(whole._borders(0)) - 1 == stretches
    share = whole.size // 16
    if stretches == 1:
        firsts = np.array([whole.place(0, i)[1] for i in range(share)])
        found = np.histogram(firsts, 4, (0, tokens))[0] / share
        assert found == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / share) ** 0.5)
    places = {whole.place(1, i) for i in range(0, whole.size, 1 + whole.size // 5000)}
    assert len(places) == len(range(0, whole.size, 1 + whole.size // 5000))


def test_epochs_stages_and_seeds_have_their_own_order(sharded: Corpus) -> None:
    def places(seeds: tuple[int, ...], number: int) -> list[tuple[int, int]]:
        reader = PackedReader(sharded, "text", 11, seeds)
        return [reader.place(number, i) for i in range(int(reader.sequences.sum()))]

    first = places((1, 0, 0), 0)
    assert first == places((1, 0, 0), 0)
    others = [places((1, 0, 0), 1), places((2, 0, 0), 0), places((1, 1, 0), 0)]
    assert all(sorted(other) == sorted(first) != other for other in others)
    assert all(other != first for other in others)


def test_the_order_is_that_of_every_version_of_numpy() -> None:
    """Written down once: a run that goes on with another NumPy must not read other data."""
    assert Order([100], 2, 11, (1234, 0, 1), 11).permutation(12, 0).tolist() == GOLDEN


def test_any_sample_alone_is_the_same_as_in_a_walk(sharded: Corpus, seed: int) -> None:
    stage = ResolvedStage({"text": 2.0, "code": 1.0}, 24, 1e4)
    walked, domains, label_ids, _ = Blend(sharded, stage, 0, seed, PackedReader).rows(
        np.arange(1000)
    )
    alone = Blend(sharded, stage, 0, seed, PackedReader)
    for i in random.Random(seed).sample(range(1000), 40):
        row, domain, label, _ = alone.rows(np.array([i]))
        assert torch.equal(label[0], label_ids[i])
        assert torch.equal(row[0], walked[i])
        assert domain.tolist() == [domains[i]]


def damaged(corpus: Corpus, seed: int) -> tuple[Path, int]:
    """Change one byte of a shard of code; return the file and the number of its block."""
    path = Path(corpus.prefixes("code", "train")[1] + ".bin")
    content = bytearray(path.read_bytes())
    at = random.Random(seed).randrange(len(content) - 64)
    content[at] ^= 1
    path.write_bytes(content)
    return path, at // BLOCK


def test_a_damaged_block_is_named_before_any_of_it_is_used(sharded: Corpus, seed: int) -> None:
    path, block = damaged(sharded, seed)
    length = int(sharded.manifest["seq_length"])
    reader = PackedReader(sharded, "code", length, SEEDS)
    refused = 0
    for i in range(int(reader.sequences.sum())):
        shard, token = reader.place(0, i)
        first, last = (token * 2 // BLOCK, ((token + length) * 2 + 1) // BLOCK)
        if shard == 1 and first <= block <= last:
            with pytest.raises(
                InputError, match=f"{path.name} is damaged in its bytes {block * BLOCK:,}"
            ):
                reader.row(0, i)
            refused += 1
        else:
            reader.row(0, i)
    assert refused > 0
    unchecked = PackedReader(sharded, "code", length, SEEDS, verify=False)
    epoch(unchecked, 0)


def test_opening_leaves_to_the_reader_what_the_reader_compares(sharded: Corpus, seed: int) -> None:
    damaged(sharded, seed)
    load_corpus(sharded.dir, "small")
    with pytest.raises(InputError, match="has other content"):
        load_corpus(sharded.dir, "hash")
    names = Path(sharded.prefixes("text", "val")[0] + ".bin"), sharded.digests("text", 2)
    for path in map(Path, filter(None, names)):
        whole = path.read_bytes()
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(InputError, match=f"{path.name} .*has other content"):
            load_corpus(sharded.dir, "small")
        path.write_bytes(whole)


def test_a_corpus_without_digests_is_compared_in_the_background(sharded: Corpus, seed: int) -> None:
    """As the pipeline built them before: read by arithmetic all the same."""
    manifest = json.loads((sharded.dir / "manifest.json").read_text())
    for name in [n for n in manifest["files"] if n.endswith(".blocks")]:
        del manifest["files"][name]
        (sharded.dir / name).unlink()
    (sharded.dir / "manifest.json").write_text(json.dumps(manifest))
    older = load_corpus(sharded.dir, "small")
    assert older.digests("code", 0) is None
    same = epoch(PackedReader(older, "code", 16, SEEDS), 0)
    assert same == epoch(PackedReader(older, "code", 16, SEEDS, verify=False), 0)
    damaged(older, seed)
    load_corpus(older.dir, "small")
    with pytest.raises(InputError, match="has other content"):
        load_corpus(older.dir, "hash")


@pytest.mark.parametrize(
    ("reader", "verify", "at_opening"),
    [
        ("megatron", "hash", "hash"),
        ("megatron", "size", "size"),
        ("packed", "hash", "small"),
        ("packed", "size", "size"),
        ("shuffled", "hash", "small"),
        ("shuffled", "size", "size"),
        ("megatron", "background", "small"),
        ("packed", "background", "small"),
    ],
)
def test_what_is_compared_when(
    data: Callable[..., DataConfig], reader: Any, verify: Any, at_opening: str
) -> None:
    config = data(reader=reader, verify=verify)
    assert opening(config) == at_opening
    made: Any = reader_of(config)
    if reader == "megatron":
        assert made is MegatronReader
    else:
        stretches = 1 if reader == "shuffled" else 16
        shared = {"verify": verify == "hash", "cache": config.cache}
        assert made.keywords == shared | {"stretches": stretches}


def test_files_that_were_cut_off_are_named(sharded: Corpus) -> None:
    path = Path(sharded.prefixes("code", "train")[0] + ".bin")
    beside = sharded.digests("code", 0)
    assert beside is not None
    reader = PackedReader(sharded, "code", 16, SEEDS, verify=False)
    last = next(
        i
        for i in range(int(reader.sequences.sum()))
        if reader.place(0, i) == (0, 16 * (int(reader.sequences[0]) - 1))
    )
    reader.row(0, last)
    os.truncate(path, path.stat().st_size - 40)
    with pytest.raises(InputError, match=f"{path.name} ends after {path.stat().st_size:,} of"):
        reader.row(0, last)
    os.truncate(beside, 40)
    with pytest.raises(InputError, match=f"{beside.name} has 40 bytes"):
        PackedReader(sharded, "code", 16, SEEDS).row(0, last)


def test_errors_that_pass_are_tried_again(sharded: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = epoch(PackedReader(sharded, "code", 16, SEEDS), 0)
    reader, failures, waited = PackedReader(sharded, "code", 16, SEEDS), [errno.EIO] * 3, []
    preadv = os.preadv

    def failing(file: int, buffers: Any, offset: int) -> int:
        if failures:
            raise OSError(failures.pop(), "not now")
        return preadv(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    monkeypatch.setattr(blocks.time, "sleep", waited.append)
    assert epoch(reader, 0) == wanted
    assert waited == list(blocks._PAUSES)
    for number, tries, fix in ((errno.EIO, 4, "the same command"), (errno.EACCES, 1, "chmod")):
        failures[:] = [number] * tries
        waited.clear()
        with pytest.raises(LoopcoderError, match=r"code-0.* cannot be read: not now") as raised:
            PackedReader(sharded, "code", 16, SEEDS).row(0, 0)
        assert fix in str(raised.value)
        assert len(waited) == tries - 1


def test_a_shard_that_may_not_be_opened_is_named(
    sharded: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Any, *_: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    reader = PackedReader(sharded, "code", 16, SEEDS, verify=False)
    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(InputError, match=r"code-0000\d.bin cannot be read: Permission denied"):
        reader.row(0, 0)


def test_a_length_that_no_stretch_has_is_refused_before_the_first_step(
    sharded: Corpus, data: Callable[..., DataConfig]
) -> None:
    """Whichever stage asks for it, and of a domain that another length has cut; what is advised is
    taken."""
    both, code = {"text": 1.0, "code": 1.0}, {"code": 1.0}
    base = small_config()

    def config(*stages: StageConfig) -> Config:
        fields = data(reader="packed", stages=list(stages))
        return replace(base, data=fields)

    def staged(length: int) -> Config:
        last = StageConfig(mixture=code, seq_length=length)
        first = StageConfig(until=10, mixture=both, seq_length=12)
        text = StageConfig(until=20, mixture={"text": 1.0}, seq_length=6)
        return config(first, text, last)

    with pytest.raises(InputError, match="of the domain 'code' has 200 tokens") as raised:
        check_stages(staged(200), sharded, Position())
    advised = re.search(r"seq_length=(\d+) or less", raised.value.problems[0].fix)
    assert advised
    said = check_stages(staged(int(advised[1])), sharded, Position())
    assert [note.split(" leaves ")[0] for note in said] == ["warning: data stage 3"]
    assert check_stages(staged(4), sharded, Position()) == []
    with pytest.raises(InputError, match="sequences of 12 have cut"):
        check_stages(staged(int(advised[1]) + 1), sharded, Position())
    # a domain that comes with that length is cut for it, and an older run has orders of their own
    check_stages(
        config(
            StageConfig(until=10, mixture={"text": 1.0}, seq_length=12),
            StageConfig(mixture=code, seq_length=200),
        ),
        sharded,
        Position(),
    )
    check_stages(staged(200), sharded, Position(before=None))
