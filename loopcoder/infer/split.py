"""How a model that decodes is split over ranks, each of which has some heads of every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from loopcoder.config.schema import ModelConfig
from loopcoder.errors import InputError, LoopcoderError, Problem


@dataclass(frozen=True)
class Split:
    """The part of this rank: heads, columns of the MLP and rows of the head."""

    rank: int = 0
    size: int = 1
    group: Any = None
    """Process group of the `size` ranks."""

    def check(self, model: ModelConfig) -> None:
        """Raise InputError unless every rank gets as much of the model as every other."""
        if problems := list(self._problems(model)):
            raise InputError(problems)

    def share(self, x: Tensor, dim: int) -> Tensor:
        """Return this rank's part of a whole tensor."""
        return x.chunk(self.size, dim)[self.rank]

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over ranks, which takes the place of x."""
        if self.size > 1:
            dist.all_reduce(x, group=self.group)
        return x

    def join(self, x: Tensor) -> Tensor:
        """Return what all ranks have, side by side. [N, n] -> [N, size * n]"""
        if self.size == 1:
            return x
        parts = x.new_empty(self.size * len(x), x.shape[1])
        dist.all_gather_into_tensor(parts, x.contiguous(), group=self.group)
        return torch.cat(parts.chunk(self.size), 1)

    def all_or_none[T](self, call: Callable[[], T], alike: Callable[[T], str]) -> T:
        """Return what a call gives on this rank; all ranks must call it.

        Args:
            alike: Says what has to be the same on all ranks.

        Raises:
            LoopcoderError: on all ranks, what one of them raised; or they found different things.
        """
        if self.size == 1:
            return call()
        result: T | None = None
        found: tuple[str, LoopcoderError | None]
        try:
            result = call()
            found = alike(result), None
        except LoopcoderError as error:
            found = "", error
        everywhere: list[Any] = [None] * self.size
        dist.all_gather_object(everywhere, found, group=self.group)
        if raised := [error for _, error in everywhere if error is not None]:
            raise raised[0]
        names = [name for name, _ in everywhere]
        if others := [name for name in names if name != names[0]]:
            raise InputError.of(
                f"rank 0 has loaded {names[0]}, another one {others[0]}",
                "all have a part of the same weights",
                "name one checkpoint, which does not change meanwhile",
            )
        assert result is not None
        return result

    def _problems(self, model: ModelConfig) -> Iterator[Problem]:
        whole = {"num_kv_heads": model.num_kv_heads, "ffn_hidden_size": model.ffn_hidden_size}
        for name, number in whole.items():
            if number % self.size:
                fits = [n for n in range(1, self.size) if not any(x % n for x in whole.values())]
                yield Problem(
                    f"parallel.tp={self.size}, model.{name}={number}",
                    "every rank has as many of them as every other",
                    f"parallel.tp={fits[-1]}",
                )


WHOLE = Split()
"""All of it, in one process."""
