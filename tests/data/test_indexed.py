"""The numpy writer against megatron-core's own."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from loopcoder.data.indexed import IndexedWriter, check_pair, read_document, token_dtype

EOD = 7


@pytest.mark.parametrize("vocab_size", [600, 65499, 65500, 200_000])
def test_bytes_equal_those_of_megatron(tmp_path: Path, rng: random.Random, vocab_size: int) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

    assert token_dtype(vocab_size) is DType.optimal_dtype(vocab_size)
    documents = [
        [*(rng.randrange(8, vocab_size) for _ in range(rng.randrange(50))), EOD] for _ in range(40)
    ]
    builder = IndexedDatasetBuilder(
        str(tmp_path / "theirs.bin"), dtype=DType.optimal_dtype(vocab_size)
    )
    for ids in documents:
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    writer = IndexedWriter(tmp_path / "ours", vocab_size)
    while documents:
        batch = [documents.pop(0) for _ in range(min(len(documents), rng.randrange(1, 9)))]
        writer.append(np.concatenate(batch), np.array([len(ids) for ids in batch]))
    writer.finish()
    for suffix in (".bin", ".idx"):
        ours = (tmp_path / f"ours{suffix}").read_bytes()
        assert ours == (tmp_path / f"theirs{suffix}").read_bytes()
    found = check_pair(tmp_path / "ours", vocab_size=vocab_size, eod_id=EOD)
    assert found[0] == 40 == len(IndexedDataset(str(tmp_path / "ours")))


def test_index_in_several_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, chunk in (("whole", 1 << 20), ("pieces", 3)):
        monkeypatch.setattr("loopcoder.data.indexed._CHUNK", chunk)
        writer = IndexedWriter(tmp_path / name, 600)
        writer.append(np.full(28, EOD), np.array([1, 2, 3, 4, 5, 6, 7]))
        writer.finish()
    assert (tmp_path / "whole.idx").read_bytes() == (tmp_path / "pieces.idx").read_bytes()


def test_nothing_has_its_name_before_it_is_complete(tmp_path: Path) -> None:
    writer = IndexedWriter(tmp_path / "a", 600)
    writer.append(np.array([1, EOD]), np.array([2]))
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin.tmp"]
    writer.finish()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "a.blocks", "a.idx"]


@pytest.mark.parametrize("lengths", [[1], [3], [2, 0]])
def test_lengths_must_match(tmp_path: Path, lengths: list[int]) -> None:
    writer = IndexedWriter(tmp_path / "a", 600)
    with pytest.raises(ValueError):
        writer.append(np.array([1, EOD]), np.array(lengths))
    writer.close()


def test_check_pair_sees_a_changed_index(tmp_path: Path, rng: random.Random) -> None:
    writer = IndexedWriter(tmp_path / "a", 600)
    writer.append(np.array([1, EOD, 2, 3, EOD]), np.array([2, 3]))
    writer.finish()
    good = (tmp_path / "a.idx").read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= rng.randrange(1, 256)
        (tmp_path / "a.idx").write_bytes(bad)
        with pytest.raises(ValueError):
            check_pair(tmp_path / "a", vocab_size=600, eod_id=EOD)


@pytest.mark.parametrize("vocab_size", [600, 200_000])
def test_one_document_is_read_without_the_others(
    tmp_path: Path, rng: random.Random, vocab_size: int
) -> None:
    documents = [
        [*(rng.randrange(8, vocab_size) for _ in range(rng.randrange(50))), EOD] for _ in range(40)
    ]
    writer = IndexedWriter(tmp_path / "x", vocab_size)
    writer.append(np.concatenate(documents), np.array([len(ids) for ids in documents]))
    writer.finish()
    for index, ids in enumerate(documents):
        read = read_document(tmp_path / "x", index, vocab_size=vocab_size, most=20)
        assert read.tolist() == ids[:20]
    for index in (-1, 40):
        with pytest.raises(ValueError, match="has 40 documents"):
            read_document(tmp_path / "x", index, vocab_size=vocab_size, most=20)
    (tmp_path / "x.idx").write_bytes(b"MMID")
    with pytest.raises(ValueError, match="does not begin like"):
        read_document(tmp_path / "x", 0, vocab_size=vocab_size, most=20)
