"""The ledger of a run while it trains: every rank counts its own part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from loopcoder.data.labels import Label
from loopcoder.data.ledger import Ledger
from loopcoder.data.sampler import Position
from loopcoder.parallel.mcore import Ranks


class Accounts:
    """Counts the tokens of the steps that are done, by label."""

    def __init__(self, begun: Ledger, labels: Sequence[Label], ranks: Ranks):
        """
        Args:
            begun: What all ranks trained before.
            labels: Of the corpus.
        """
        self._begun, self._labels, self._ranks = begun, labels, ranks
        self._mine = np.zeros(len(labels), dtype=np.int64)

    def notes(self) -> Iterator[str]:
        """Yield what to say of a ledger that does not know all of its run."""
        if since := self._begun.since_step:
            yield (
                f"tokens by language and source count from step {since} on: "
                "the version that trained up to there did not count them"
            )

    def add(self, label_tokens: NDArray[np.int64]) -> None:
        """Count what this rank took in a step that is done. [labels]"""
        self._mine += label_tokens

    def ledger(self, position: Position) -> Ledger:
        """Return the ledger of the whole run, which stands at a position; all ranks must call it.

        Raises:
            ValueError: it does not add up to the tokens of the position.
        """
        total = torch.tensor(self._mine, device=self._ranks.device)
        dist.all_reduce(total, group=self._ranks.groups.dp)
        ledger = self._begun.plus(self._labels, total.cpu().numpy())
        ledger.check(position)
        return ledger
