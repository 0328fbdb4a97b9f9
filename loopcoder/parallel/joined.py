"""One tensor of the parts that the ranks of a group have."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def joined(part: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """Join equal parts of a tensor in the order of ranks, without gradients. All ranks of the group
    must call it.

    Args:
        part: of this rank; as wide along `dim` as those of the others.
    """
    if group.size() == 1:
        return part
    part = part.contiguous()
    parts = [torch.empty_like(part) for _ in range(group.size())]
    dist.all_gather(parts, part, group=group)
    return torch.cat(parts, dim)
