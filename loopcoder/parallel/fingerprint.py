"""Fingerprints of tensors, and which rank of a group has another one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_CHUNK = 1 << 24
"""Elements whose products are in memory at once, 8 bytes each."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(tensor: Tensor) -> Tensor:
    """Return the sum over elements of bits * (2 * index + 1), modulo 2^64. []

    The factors are odd, so that one element with other bits always changes it, and elements that
    change places do. It stays on the device.
    """
    flat = tensor.detach().contiguous().view(-1)
    bits = flat.view(_BITS[flat.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, bits.numel(), _CHUNK):
        part = bits[start : start + _CHUNK].to(torch.int64)
        stop = start + part.numel()
        odd = torch.arange(2 * start + 1, 2 * stop, 2, dtype=torch.int64, device=tensor.device)
        total += (part * odd).sum()
    return total


def fingerprints(tensors: Sequence[Tensor]) -> Tensor:
    """Return the fingerprints of some tensors. [tensors]"""
    return torch.stack([fingerprint(tensor) for tensor in tensors])


def differing(mine: Tensor, group: dist.ProcessGroup) -> list[tuple[int, list[int]]]:
    """Compare fingerprints [n] with those of the other ranks of a group, all of which call it.

    Returns:
        index and global ranks where they are not all the same: those whose fingerprint is not that
        of most. Where no fingerprint is that of more than half, all that could be wrong.
    """
    size = dist.get_world_size(group)
    parts = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(parts, mine, group=group)
    table = torch.stack(parts)
    unequal = (table != table[0]).any(0).nonzero().flatten().tolist()
    ranks = dist.get_process_group_ranks(group)
    found = []
    for index in unequal:
        values = table[:, index].tolist()
        ((value, count),) = Counter(values).most_common(1)
        others = [r for r, v in zip(ranks, values, strict=True) if v != value]
        found.append((index, others if 2 * count > size else ranks))
    return found
