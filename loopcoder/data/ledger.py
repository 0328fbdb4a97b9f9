"""Tokens that a run has trained, by domain, language and source.

They are counted where batches are made, from the same numbers that the sums of losses go by, and
count once their step is done: what was read ahead does not. The sum is `Position.tokens`, whatever
was stopped, killed, continued on other ranks or fed from other stages meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopcoder.data.labels import Label
from loopcoder.data.sampler import Position

LEDGER_FILE = "ledger.json"
"""In the folder of a run: the ledger of its newest save."""


@dataclass(frozen=True)
class LedgerEntry:
    """Tokens of the documents that have a label."""

    domain: str
    language: str | None
    source: str | None
    tokens: int


@dataclass(frozen=True)
class Ledger:
    """What a run has trained since a step."""

    since_step: int = 0
    """Optimizer steps before it began; not 0 where the run began by a version without it."""
    since_tokens: int = 0
    """Tokens of these steps, of which is not known what they were."""
    entries: tuple[LedgerEntry, ...] = ()
    """By domain, language and source; none without tokens."""

    @classmethod
    def from_here(cls, position: Position) -> Ledger:
        """Begin at a position of which no ledger tells."""
        return cls(position.step, position.tokens)

    @property
    def tokens(self) -> int:
        """Tokens that it knows of."""
        return sum(entry.tokens for entry in self.entries)

    def check(self, position: Position) -> None:
        """Raise ValueError unless it has exactly the tokens up to a position."""
        if self.since_tokens + self.tokens != position.tokens:
            raise ValueError(
                f"the ledger has {self.tokens:,} tokens after the {self.since_tokens:,} of the "
                f"first {self.since_step:,} steps, the position {position.tokens:,}"
            )

    def plus(self, labels: Sequence[Label], tokens: NDArray[np.int64]) -> Ledger:
        """Return it with further tokens of some labels. [labels]"""
        total = {Label(e.domain, e.language, e.source): e.tokens for e in self.entries}
        for label, more in zip(labels, tokens.tolist(), strict=True):
            if more:
                total[label] = total.get(label, 0) + more
        ordered = sorted(total.items(), key=lambda item: [(x is None, x or "") for x in item[0]])
        entries = tuple(LedgerEntry(*label, count) for label, count in ordered)
        return Ledger(self.since_step, self.since_tokens, entries)

    def as_file(self, position: Position) -> dict[str, Any]:
        """Return the content of `LEDGER_FILE` of a run that stands at a position."""
        return {"step": position.step, "tokens": position.tokens, **asdict(self)}


def count_labels(total: NDArray[np.int64], label_ids: NDArray[np.int64]) -> None:
    """Add the labels of a batch to a count of each. [labels] += [B, S]

    By runs of equal ones, which are a document or more: counting one by one takes a tenth of the
    time that a loader has.
    """
    flat = label_ids.reshape(-1)
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), len(flat) - 1)
    lengths = ends.copy()
    lengths[0] += 1
    lengths[1:] -= ends[:-1]
    np.add.at(total, flat[ends], lengths)
