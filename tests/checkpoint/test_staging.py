"""What a background save copies is what was there, in memory that its writer shares."""

from __future__ import annotations

import errno
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loopcoder.checkpoint import staging
from loopcoder.checkpoint.staging import Staging
from tests.checkpoint.saved import build_small, load_small
from tests.checkpoint.states import state_at
from tests.dist.layouts import VOCAB
from tests.dist.test_checkpoints import steps

CPU = torch.device("cpu")


def drawn(seed: int) -> list[Tensor]:
    """Tensors of many kinds: of one element and none, of odd sizes, transposed, of every width."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 90, (6, 2), generator=g).tolist()
    kinds = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.float32]
    tensors = [
        torch.randint(0, 200, size, generator=g).to(kind)
        for size, kind in zip(sizes, kinds, strict=True)
    ]
    return [*tensors, tensors[0].T, tensors[1][:, :1], torch.tensor(3.5), torch.empty(0, 4)]


def in_buckets(tensors: Sequence[Tensor]) -> list[Any]:
    half = len(tensors) // 2
    parts = [list(enumerate(tensors[:half])), list(enumerate(tensors[half:], half))]
    return [(f"file{i}", f"key{i}", ([("object", b"x")], part)) for i, part in enumerate(parts)]


def out_of(buckets: Sequence[Any]) -> list[Tensor]:
    return [t for _, _, (_, held) in buckets for _, t in held]


@pytest.mark.parametrize("piece", [staging._PIECE, staging._ALIGNED])
def test_copies_are_equal_and_do_not_change_with_their_tensors(
    piece: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_PIECE", piece)  # which a tensor may reach over
    memory = Staging(CPU)
    for number in (seed, seed + 1):  # the second time the memory is there
        tensors = drawn(number)
        buckets = memory.copy(in_buckets(tensors))
        memory.wait()
        wanted = [t.clone() for t in tensors]
        for tensor in tensors:
            tensor.zero_()
        assert [b[:2] for b in buckets] == [("file0", "key0"), ("file1", "key1")]
        assert [b[2][0] for b in buckets] == [[("object", b"x")]] * 2
        for copy, tensor in zip(out_of(buckets), wanted, strict=True):
            assert torch.equal(copy, tensor) and copy.dtype == tensor.dtype
            # torch.save writes all of a storage
            assert copy.untyped_storage().nbytes() == copy.nbytes


def test_memory_grows_with_what_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_PIECE", 1 << 16)
    memory = Staging(CPU)
    assert not memory.is_prepared
    memory.prepare([100])
    assert memory.is_prepared and memory._size == 1 << 16
    large = torch.arange(1 << 16)
    assert torch.equal(out_of(memory.copy(in_buckets([large, large])))[1], large)
    assert memory._size == 2 * large.nbytes
    memory.close()
    assert not memory.is_prepared


def _changes(copies: list[Tensor]) -> None:
    for copy in copies:
        copy.add_(1)


def test_a_forked_process_has_the_same_memory(seed: int) -> None:
    """Not a copy of it, for which forking a trainer would take seconds."""
    tensors = drawn(seed)[:4]
    copies = out_of(Staging(CPU).copy(in_buckets(tensors)))
    process = multiprocessing.get_context("fork").Process(target=_changes, args=(copies,))
    process.start()
    process.join()
    for copy, tensor in zip(copies, tensors, strict=True):
        assert torch.equal(copy, tensor + 1)


def test_without_memory_megatron_copies_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    for where in ((staging.mmap, "mmap"), (staging, "_populate")):
        with monkeypatch.context() as patch:
            patch.setattr(*where, fails)
            memory = Staging(CPU)
            assert memory.copy(in_buckets([torch.ones(3)])) is None
            assert memory.fault is not None and "67 MB" in memory.fault
            assert memory.copy(in_buckets([torch.ones(3)])) is None  # not tried again
        memory.close()


def test_what_cannot_be_pinned_is_copied_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("CUDA's error 2")

    monkeypatch.setattr(Staging, "_register", fails)
    memory = Staging(CPU)
    (copy,) = out_of(memory.copy(in_buckets([torch.ones(3)])) or [])
    assert torch.equal(copy, torch.ones(3))
    assert memory.fault is not None and "cannot be pinned (CUDA's error 2)" in memory.fault


def test_a_save_keeps_what_was_there_when_it_began(
    ranks: object, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loopcoder.checkpoint import format as layout
    from loopcoder.checkpoint.save import Saver

    monkeypatch.setattr(staging, "_PIECE", staging._ALIGNED)
    config, state = build_small()
    asked = replace(config.checkpoint, async_save=True)
    saver = Saver(replace(config, checkpoint=asked), tmp_path, lambda *_, **__: None)
    memory = saver._staging = Staging(CPU)
    steps(config, state, range(2), seed)
    saver.prepare(state.network, state.optimizer)
    taken = memory._memory
    wanted = {name: p.detach().clone() for name, p in state.network.named_parameters()}
    held = sum(w.nbytes for w in wanted.values())
    # weights, the optimizer's of them, and two moments
    assert 4 * held <= memory._size < 4 * held + 2 * staging._ALIGNED * 4 * len(wanted)
    about = state_at(2, vocab_size=VOCAB, num_loops=config.model.num_loops)
    saver.save(state.network, state.ddp, state.optimizer, about)
    steps(config, state, range(2, 3), seed)
    saver.finish()
    assert taken is not None and memory._memory is taken
    changed = dict(state.network.named_parameters())
    assert not all(torch.equal(changed[name], w) for name, w in wanted.items())
    loaded = load_small(layout.find(tmp_path))  # its digest is compared, of moments as well
    for name, p in loaded.network.named_parameters():
        assert torch.equal(p, wanted[name]), name
