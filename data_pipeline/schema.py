"""What flows through the pipeline: documents, and the tally that every step keeps of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_DOCUMENT_BYTES = 8 << 20
"""Larger documents are dropped and counted: the tokenizer takes some 100 bytes per byte of text."""


@dataclass(frozen=True)
class Document:
    """One document of the corpus."""

    id: str
    """xxh3-128 of (source, path, row) in hex: the same in every run, whatever else is read."""
    text: str
    domain: str
    """`text` or `code`."""
    language: str
    """Programming language, or the format of prose."""
    source: str
    """Name of the source it comes from."""
    path: str
    """File it comes from, as the source names it."""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Tally:
    """What one step of the pipeline took in, handed on and dropped, by reason."""

    stage: str
    """Name of the step; a stage may have several."""
    rows_in: int = 0
    rows_out: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    """Rows that were left out, by reason."""
    notes: Counter[str] = field(default_factory=Counter)
    """Repairs and oddities of rows or files that were kept."""
    file_drops: Counter[str] = field(default_factory=Counter)
    """Files that were left out as a whole, by reason; their rows appear nowhere else."""

    def drop(self, reason: str) -> None:
        self.drops[reason] += 1

    def add(self, other: Tally) -> None:
        """Add the tally of the same step over other documents."""
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        self.drops.update(other.drops)
        self.notes.update(other.notes)
        self.file_drops.update(other.file_drops)

    def check(self) -> None:
        """Assert rows_in = rows_out + drops.

        Raises:
            RuntimeError: rows were lost or invented, a bug of the step and not of its input.
        """
        dropped = sum(self.drops.values())
        if self.rows_in != self.rows_out + dropped:
            raise RuntimeError(
                f"stage {self.stage}: {self.rows_in} rows in, but {self.rows_out} out "
                f"+ {dropped} dropped ({dict(self.drops)})"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the tally as it stands in the manifest."""
        return {
            "stage": self.stage,
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "drops": dict(sorted(self.drops.items())),
            "notes": dict(sorted(self.notes.items())),
            "file_drops": dict(sorted(self.file_drops.items())),
        }
