"""The digest of a state: the same in any layout, and another one after any change of a bit."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.digest import DIGEST, read_digest, tensor_digest
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.load import load
from loopcoder.errors import EXIT_BAD_INPUT, InputError
from tests.checkpoint.saved import build_small, load_small, mend_manifest, save_small

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8]


def reference(name: str, whole: torch.Tensor) -> int:
    """The digest by its definition, in Python's integers."""
    import xxhash

    size = min(whole.element_size(), 4)
    raw = whole.reshape(-1).view(torch.uint8).reshape(-1, size).tolist()
    seed, total = xxhash.xxh3_64_intdigest(name.encode()) - (1 << 63), 0
    for index, content in enumerate(raw):
        bits = int.from_bytes(bytes(content), "little", signed=size > 1)
        x = ((index * 0x9E3779B97F4A7C15 + seed) ^ bits) % (1 << 64)
        x = x * 0xBF58476D1CE4E5B9 % (1 << 64)
        total += x ^ (x >> 32)
    return total % (1 << 64)


def drawn(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(shape) * 50).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cut_anyhow_it_is_the_sum_of_its_definition(dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    for shape in ([7], [5, 6], [3, 4, 5], [], [1, 9], [2, 1, 3, 4]):
        whole = drawn(shape, dtype)
        expected = reference("name", whole)
        found = int(tensor_digest("name", whole, [0] * len(shape), shape))
        assert found % (1 << 64) == expected
        for axis in range(len(shape)):
            cut, total = max(1, shape[axis] // 2), 0
            for begin in range(0, shape[axis], cut):
                offset = [begin if a == axis else 0 for a in range(len(shape))]
                part = whole.narrow(axis, begin, min(cut, shape[axis] - begin))
                total += int(tensor_digest("name", part, offset, shape))
            assert total % (1 << 64) == expected


def test_more_than_a_block(seed: int) -> None:
    torch.manual_seed(seed)
    for shape in ([300, 700], [150_001]):
        whole = drawn(shape, torch.float32)
        found = int(tensor_digest("name", whole, [0] * len(shape), shape))
        assert found % (1 << 64) == reference("name", whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_bit_changes_it(dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    whole = drawn([3, 2], dtype)
    seen = {int(tensor_digest("name", whole, [0, 0], [3, 2]))}
    raw = whole.view(torch.uint8)
    for place in range(raw.numel()):
        for bit in range(8):
            raw.reshape(-1)[place] ^= 1 << bit
            seen.add(int(tensor_digest("name", whole, [0, 0], [3, 2])))
            raw.reshape(-1)[place] ^= 1 << bit
    assert len(seen) == raw.numel() * 8 + 1
    assert int(tensor_digest("other", whole, [0, 0], [3, 2])) not in seen
    swapped = whole.flip(0)
    assert int(tensor_digest("name", swapped, [0, 0], [3, 2])) not in seen


@pytest.fixture(scope="module")
def saved(ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("saved")
    save_small(run_dir, 1)
    return layout.step_folder(run_dir, 2)


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Checkpoint:
    folder = tmp_path / saved.name
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return Checkpoint(folder, 2)


def flip_a_bit_of(checkpoint: Checkpoint, kind: str) -> str:
    """Change a bit of a tensor in the shards, with its checksums; return its name."""
    path = checkpoint.path
    metadata = pickle.loads((path / ".metadata").read_bytes())
    index, info = next((i, s) for i, s in metadata.storage_data.items() if kind in i.fqn)
    shard = bytearray((path / info.relative_path).read_bytes())
    tensor = torch.load(io.BytesIO(shard[info.offset : info.offset + info.length]))
    tensor.view(torch.int32).reshape(-1)[-1] ^= 1
    written = io.BytesIO()
    torch.save(tensor, written)
    assert len(written.getvalue()) == info.length
    shard[info.offset : info.offset + info.length] = written.getvalue()
    (path / info.relative_path).write_bytes(shard)
    mend_manifest(path)
    name: str = index.fqn
    return name


@pytest.mark.parametrize("kind", ["state.exp_avg.", "state.exp_avg_sq.", "state.param.", "model."])
def test_one_bit_of_what_was_saved_is_refused(copied: Checkpoint, kind: str) -> None:
    load_small(copied)
    name = flip_a_bit_of(copied, kind)
    assert not list(layout.faults(copied, "hash"))
    config, state = build_small()
    # the optimizer has the weights too, and those count where it is loaded
    optimizer = None if kind == "model." else state.optimizer
    with pytest.raises(InputError) as raised:
        load(copied, state.network, optimizer, config)
    assert raised.value.exit_code == EXIT_BAD_INPUT
    facts = [problem.fact for problem in raised.value.problems]
    assert any(f"{name} is not what was saved" in fact for fact in facts)
    config = replace(config, checkpoint=replace(config.checkpoint, digest=False))
    load(copied, state.network, optimizer, config)  # what was asked for


@pytest.mark.parametrize("key", ["position", "warmup_steps", "corpus"])
def test_another_place_is_refused(copied: Checkpoint, key: str) -> None:
    path = copied.path / layout.STATE
    content = json.loads(path.read_text())
    content[key] = {
        "position": content["position"] | {"sample": 17},
        "warmup_steps": 6,
        "corpus": "other",
    }[key]
    path.write_text(json.dumps(content))
    mend_manifest(copied.path)
    with pytest.raises(InputError, match="position is not what was saved"):
        load_small(copied)


def test_without_and_with_a_damaged_digest(copied: Checkpoint) -> None:
    path = copied.path / DIGEST
    found = read_digest(copied)
    assert found is not None and {n.split(".")[0] for n in found} >= {"model", "optimizer"}
    path.write_text("{")
    mend_manifest(copied.path)
    with pytest.raises(InputError, match=r"digest\.json cannot be read"):
        load_small(copied)
    path.unlink()  # as in older checkpoints
    mend_manifest(copied.path)
    load_small(copied)


def test_only_what_has_to_be_equal_is_compared(copied: Checkpoint) -> None:
    """Weights without optimizer; one loop of a model of two, which drops its gates."""
    for model, with_optimizer in (({}, False), ({"num_loops": 1}, False)):
        config, state = build_small(**model)
        load(copied, state.network, state.optimizer if with_optimizer else None, config)
    flip_a_bit_of(copied, "state.exp_avg.")
    config, state = build_small()
    load(copied, state.network, None, config)  # moments are not loaded
