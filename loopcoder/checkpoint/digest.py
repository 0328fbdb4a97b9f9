"""A digest of what a checkpoint holds that does not depend on how ranks share it.

Each element of a tensor gives a hash of the tensor's name, its index in the whole tensor and its
bits; a tensor's digest is the sum of them, mod 2^64. A sum has no order: any layout has the same.
The hash of one element is injective in its bits, so that one changed bit always changes the sum.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor

from loopcoder.checkpoint.format import STATE, Checkpoint, trained_with
from loopcoder.config.schema import Config
from loopcoder.errors import InputError, Problem
from loopcoder.optim.schedule import learning_rate
from loopcoder.storage.digest import fingerprint
from loopcoder.storage.files import parsing

DIGEST = "digest.json"
_OPTIMIZER, _GROUPS, _PLACE = "optimizer", "optimizer groups", "position"
_BLOCK = {"cpu": 1 << 16, "cuda": 1 << 22}
"""Elements at once: on a CPU what its second cache holds."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}
"""By bytes: what has the bits of an element; of 8 bytes each half is an element."""
# odd numbers of 64 bits without a pattern, from the golden ratio and from splitmix64
# (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014), as signed ones
_SPREAD, _MIX = 0x9E3779B97F4A7C15 - (1 << 64), 0xBF58476D1CE4E5B9 - (1 << 64)
_LOW_32 = (1 << 32) - 1
Shard = tuple[str, Tensor, list[int], list[int]]
"""Name, data, offset and whole shape."""


def digest_of(shards: dict[str, Any] | Sequence[Shard], optimizer: Any | None) -> dict[str, str]:
    """Return the digest of every tensor by name, the same on all ranks, which must all call it.

    Args:
        shards: What `save.sharded_state` returned, whose factories are applied; or `shards_of` it.
        optimizer: Whose groups have rates and steps; None: weights alone.
    """
    sums: dict[str, Tensor] = {}
    for name, data, offset, shape in shards_of(shards) if isinstance(shards, dict) else shards:
        found = tensor_digest(name, data, offset, shape)
        sums[name] = sums[name] + found if name in sums else found
    mine = {name: int(total) for name, total in sums.items()}
    groups = set() if optimizer is None else set(_groups(optimizer))
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (mine, groups))
    names = sorted({name for part, _ in gathered for name in part})
    totals = {name: sum(part.get(name, 0) for part, _ in gathered) % (1 << 64) for name in names}
    out = {name: f"{total:016x}" for name, total in totals.items()}
    if optimizer is not None:
        out[_GROUPS] = fingerprint(sorted(set().union(*(held for _, held in gathered))))
    return out


def shards_of(shards: dict[str, Any]) -> Iterator[Shard]:
    """Yield name, data, offset and whole shape of what this rank alone holds, or holds first."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import (
        ShardedObject,
        ShardedTensor,
        apply_factories,
        is_main_replica,
    )

    apply_factories(shards)
    for value in nested_values(shards):
        if isinstance(value, ShardedTensor) and is_main_replica(value.replica_id):
            axes = (1,) * value.prepend_axis_num
            data = value.data.detach()
            offset, shape = list(value.global_offset), list(value.global_shape)
            yield value.key, data.reshape(*axes, *data.shape), offset, shape
        elif isinstance(value, ShardedObject) and is_main_replica(value.replica_id):
            held = value.data if isinstance(value.data, dict) else {}
            for name, data in held.items():  # a history of FP8 scaling
                if isinstance(data, Tensor):
                    key = f"{value.unique_key}.{name}"
                    yield key, data, [0] * data.ndim, list(data.shape)


def _groups(optimizer: Any) -> Iterator[tuple[float, ...]]:
    """Yield what the optimizer counts and scales by, of each group of parameters."""
    for group in optimizer.param_groups:
        if group["params"]:
            yield tuple(float(group.get(key) or 0) for key in ("step", "lr", "weight_decay"))


def tensor_digest(name: str, data: Tensor, offset: list[int], shape: list[int]) -> Tensor:
    """Return the sum over the elements of a shard. int64, on its device

    Args:
        name: Of the whole tensor.
        data: The shard.
        offset: Where it begins in the whole tensor, by axis.
        shape: Of the whole tensor.
    """
    device, seed = data.device, xxhash.xxh3_64_intdigest(name.encode())
    total = torch.zeros((), dtype=torch.int64, device=device)
    if data.numel() == 0:
        return total
    if data.ndim == 0:
        data, offset, shape = data.reshape(1), [0], [1]
    halves = data.element_size() // _BITS[data.element_size()].itemsize
    data = data.contiguous().view(_BITS[data.element_size()])
    offset, shape = [*offset[:-1], offset[-1] * halves], [*shape[:-1], shape[-1] * halves]
    # the index times _SPREAD, mod 2^64, is a sum of what rows and columns bring to it
    rows = torch.full((1,), seed - (1 << 63), dtype=torch.int64, device=device)
    along, stride = [], 1
    for begin, size, whole in zip(*map(reversed, (offset, data.shape, shape)), strict=True):
        along.append(torch.arange(begin, begin + size, device=device) * stride * _SPREAD)
        stride *= whole
    columns, *others = along
    for other in reversed(others):
        rows = (rows[:, None] + other).reshape(-1)
    bits = data.reshape(len(rows), len(columns))
    block = _BLOCK.get(device.type, _BLOCK["cuda"])
    wide = min(len(columns), block)
    high = max(1, block // wide)
    for r in range(0, len(rows), high):
        for c in range(0, len(columns), wide):
            place = rows[r : r + high, None] + columns[c : c + wide]
            x = place.bitwise_xor_(bits[r : r + high, c : c + wide]).mul_(_MIX)
            x.bitwise_xor_((x >> 32).bitwise_and_(_LOW_32))
            total += x.sum()
    return total


def place_digest(state: dict[str, Any], config: Config) -> str:
    """Return a hash of where a run stands: in its data, in its schedule, with which random order.

    Args:
        state: The content of state.json as it was written, of whatever version.
        config: Of the run.
    """
    step, last, warmup = state["step"], config.train.max_steps, state["warmup_steps"]
    rate = learning_rate(config.optim, max(1, min(step, last)), last, warmup)
    # nine digits: another mathematical library may round the last ones otherwise
    return fingerprint(state["position"], state["corpus"], warmup, config.seed, f"{rate:.9g}")


def whole_digest(found: dict[str, str], state: dict[str, Any], config: Config) -> dict[str, str]:
    """Return the sums of digest.json, from those of the tensors and what `place_digest` takes."""
    return found | {_PLACE: place_digest(state, config)}


def read_digest(checkpoint: Checkpoint) -> dict[str, str] | None:
    """Return what digest.json says; None: the checkpoint has none, as older ones.

    Raises:
        InputError: it is damaged.
    """
    path = checkpoint.path / DIGEST
    why = "it says what the tensors were when they were saved"
    with (
        suppress(FileNotFoundError),
        parsing(path, why, "another checkpoint, or checkpoint.digest=false"),
    ):
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(value) for name, value in content["sums"].items()}
    return None


def is_comparable(checkpoint: Checkpoint, config: Config) -> bool:
    """Say whether what is loaded has to be what was saved, bit for bit: the same tensors in the
    same precision."""
    before = checkpoint.config()
    same = before.precision == config.precision and before.model.num_loops == config.model.num_loops
    return same and before.model.has_gates == config.model.has_gates


def check_loaded(checkpoint: Checkpoint, saved: dict[str, str], found: dict[str, str]) -> None:
    """Compare what was loaded with what was saved.

    Args:
        saved: What `read_digest` says.
        found: The digest of the state after loading; without optimizer, of the weights.

    Raises:
        InputError: with every tensor that differs.
    """
    state = json.loads((checkpoint.path / STATE).read_text(encoding="utf-8"))
    found = whole_digest(found, state, trained_with(checkpoint.path))
    with_optimizer = _GROUPS in found
    wanted = {n: s for n, s in saved.items() if with_optimizer or not n.startswith(_OPTIMIZER)}
    problems = [
        Problem(
            f"{checkpoint.path}: {name} is not what was saved: its digest is "
            f"{found.get(name, 'missing')}, {wanted.get(name, 'nothing')} was written",
            "its bits were altered after they were summed up, or are loaded wrongly; training on "
            "them would be silently wrong",
            f"checkpoint.step=N for an older one (loopcoder checkpoint list "
            f"{checkpoint.path.parent}), or checkpoint.digest=false to train on it all the same",
        )
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    if problems:
        raise InputError(problems)
