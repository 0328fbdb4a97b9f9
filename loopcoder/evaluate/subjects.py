"""What is evaluated: trained weights in this process, or a model behind a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from loopcoder.infer.request import Sampling


@dataclass(frozen=True)
class Prompt:
    """A text that is to be continued."""

    text: str
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()


class Completes(Protocol):
    """A model that continues texts."""

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """Yield the continuation of each prompt with its index, in any order.

        Raises InputError where a prompt can never be continued.
        """
