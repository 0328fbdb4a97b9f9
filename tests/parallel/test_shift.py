"""The position before a rank's part of a sequence comes from the rank before, and its gradient goes
back there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loopcoder.parallel.shift import position_before
from tests.dist.launch import in_processes


def shifted(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the parts of a sequence one position later, in one process."""
    whole = torch.cat(parts)
    later = torch.cat([torch.zeros_like(whole[:1]), whole[:-1]])
    return list(later.split([len(part) for part in parts]))


def draw(seed: int, ranks: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Draw the parts of a sequence, and what their shifted copies are weighted with in a loss."""
    generator = torch.Generator().manual_seed(seed)
    # A part of one position is both the first and the last of a rank.
    shape = (ranks, int(torch.randint(1, 4, (), generator=generator)), 2, 3)
    return [list(torch.randn(shape, generator=generator)) for _ in range(2)]


def run(rank: int, seed: int, size: int) -> tuple[Any, Any]:
    """Return this rank's shifted part and the gradient of its part."""
    import torch.distributed as dist

    parts, weights = draw(seed, size)
    mine = parts[rank].requires_grad_()
    before = position_before(dist.group.WORLD)(mine)
    assert before.shape == mine[:1].shape
    out = torch.cat([before, mine[:-1]])
    (out * weights[rank]).sum().backward()
    return out.detach().numpy(), mine.grad.numpy()


@pytest.mark.dist
@pytest.mark.dist_full
def test_three_ranks_shift_like_one_process(seed: int) -> None:
    found = in_processes(3, run, seed, 3)
    parts, weights = draw(seed, 3)
    parts = [part.requires_grad_() for part in parts]
    expected = shifted(parts)
    sum((out * w).sum() for out, w in zip(expected, weights, strict=True)).backward()
    for (out, grad), part, shift in zip(found, parts, expected, strict=True):
        assert torch.equal(torch.from_numpy(out), shift)
        assert torch.equal(torch.from_numpy(grad), part.grad)


def test_nothing_is_before_the_only_rank(ranks: Any, seed: int) -> None:
    parts, _ = draw(seed, 1)
    mine = parts[0].requires_grad_()
    before = position_before(ranks.groups.tp)(mine)
    assert before.shape == mine[:1].shape
    assert not before.any()
    before.sum().backward()
    assert not mine.grad.any()
