"""Sums of what was measured, by the independent units of the data.

A row is the tokens of one language in one sequence: sequences are what intervals are clustered by,
and languages and domains are groups of rows. Tables of several ranks add up: each rank adds what
it has, and a value that several have is added by one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WHOLE = -1
"""The language of a row that stands for a sequence as a whole."""


class Row(NamedTuple):
    """What a row is of, by index."""

    domain: int
    sequence: int
    """Within its domain."""
    language: int


class Column(NamedTuple):
    """One measure in one loop and layer."""

    measure: str
    variant: str
    loop: int
    """Counted from 1."""
    layer: int | None = None
    """Counted from 0, in the model."""


class Table:
    """Sums and counts of per-token values; on the device until a batch ends."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._rows: list[Row] = []
        self._row_of: Tensor | None = None
        self._found: dict[Column, tuple[Tensor, Tensor]] = {}
        self._kept: dict[Column, tuple[Tensor, Tensor]] = {}

    def begin(self, domain: int, sequences: Tensor, languages: Tensor) -> None:
        """Begin a batch.

        Args:
            sequences: Index of each sequence within its domain. [B]
            languages: Index of each token's language. [B, S]
        """
        batch, most = len(sequences), int(languages.max()) + 1
        keys = torch.arange(batch, device=languages.device)[:, None] * most + languages
        unique, row_of = keys.unique(return_inverse=True)
        number = sequences.tolist()
        self._rows = [Row(domain, number[key // most], key % most) for key in unique.tolist()]
        self._rows += [Row(domain, sequence, WHOLE) for sequence in number]
        self._row_of = row_of.transpose(0, 1).flatten()
        self._batch = batch

    @property
    def row_of(self) -> Tensor:
        """Index of each token's row in those of the batch. [S * B]"""
        assert self._row_of is not None, "a batch has begun"
        return self._row_of

    def add(self, column: Column, values: Tensor, defined: Tensor, *, counts: bool = True) -> None:
        """Add one value per token.

        Args:
            values: [S, B]; what is not defined may be anything.
            defined: Where there is a value that counts. [S, B], bool.
            counts: False where another rank counts the tokens of a sum that is split over ranks.
        """
        here = torch.where(defined, values, 0).flatten().double()
        number = defined.flatten().double() if counts else torch.zeros_like(here)
        both = here.new_zeros(2, len(self._rows))
        both.index_add_(1, self.row_of, torch.stack([here, number]))
        self._put(column, both)

    def add_sequence(self, column: Column, index: int, value: Tensor) -> None:
        """Add a value of a whole sequence.

        Args:
            index: Of the sequence, in the batch.
            value: []
        """
        both = value.new_zeros(2, len(self._rows), dtype=torch.float64)
        at = len(self._rows) - self._batch + index
        both[0, at], both[1, at] = value.double(), 1
        self._put(column, both)

    def _put(self, column: Column, both: Tensor) -> None:
        found = self._found.get(column)
        self._found[column] = (
            (both[0], both[1])
            if found is None
            else (
                found[0] + both[0],
                found[1] + both[1],
            )
        )

    def keep(self, column: Column, values: Tensor, defined: Tensor) -> None:
        """Keep whole numbers one by one, of which a median is asked for: 8 bytes each.

        Args:
            values: [S, B]
            defined: [S, B], bool.
        """
        here = defined.flatten()
        self._kept[column] = self.row_of[here], values.flatten()[here]

    def end(self) -> None:
        """Take the sums of the batch from the device."""
        if self._found:
            stacked = torch.stack([torch.stack(x) for x in self._found.values()])  # [C, 2, rows]
            values = stacked.cpu().numpy()
            kept = {
                c: (at.to(torch.int32).cpu().numpy(), of_token.to(torch.int32).cpu().numpy())
                for c, (at, of_token) in self._kept.items()
            }
            self._parts.append(_Part(list(self._rows), list(self._found), values, kept))
        self._found, self._kept, self._row_of = {}, {}, None

    def merged(self, others: Iterable[Table] = ()) -> Merged:
        """Return the sums of all batches, and of the tables of other ranks."""
        parts = [part for table in (self, *others) for part in table._parts]
        found = sorted({c for p in parts for c in p.columns}, key=_order)
        columns = {column: i for i, column in enumerate(found)}
        rows = {row: i for i, row in enumerate(sorted({r for p in parts for r in p.rows}))}
        both = np.zeros((2, len(rows), len(columns)))
        kept: dict[Column, list[tuple[NDArray[np.int64], NDArray[np.int32]]]] = {}
        for part in parts:
            at = np.array([rows[r] for r in part.rows])
            for column, values in zip(part.columns, part.values, strict=True):
                for total, of_part in zip(both, values, strict=True):
                    np.add.at(total[:, columns[column]], at, of_part)
            for column, (local, of_token) in part.kept.items():
                kept.setdefault(column, []).append((at[local], of_token))
        joined = {c: tuple(map(np.concatenate, zip(*x, strict=True))) for c, x in kept.items()}
        keys = np.array(list(rows), dtype=np.int64).reshape(-1, 3)
        return Merged(keys, columns, both[0], both[1], joined)


@dataclass(frozen=True)
class _Part:
    """What one batch gave on one rank."""

    rows: list[Row]
    columns: list[Column]
    values: NDArray[np.float64]
    """Sums and counts. [columns, 2, rows]"""
    kept: dict[Column, tuple[NDArray[np.int32], NDArray[np.int32]]]
    """Row and value of each token."""


def _order(column: Column) -> tuple[Any, ...]:
    return (*column[:3], -1 if column.layer is None else column.layer)


@dataclass(frozen=True)
class Merged:
    """All sums of a diagnosis."""

    rows: NDArray[np.int64]
    """Domain, sequence and language. [rows, 3]"""
    columns: Mapping[Column, int]
    sums: NDArray[np.float64]
    """[rows, columns]"""
    counts: NDArray[np.float64]
    """[rows, columns]"""
    kept: Mapping[Column, Any]
    """Row and value of each token, [tokens] both."""

    def by_sequence(
        self,
        columns: Sequence[Sequence[Column]],
        domain: int | None = None,
        language: int | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Return domain and index of the sequences of a group [sequences, 2], and their sums and
        counts, each [sequences, columns].

        Args:
            columns: Those that are added up for each one that is returned, as a measure of all
                layers.
            domain: Only its sequences.
            language: Only its tokens.
        """
        keys, number = self.sequences(np.arange(len(self.rows)), domain, language)
        inside = number >= 0
        both = []
        for values in (self.sums[inside], self.counts[inside]):
            picked = np.stack([values[:, self._at(some)].sum(1) for some in columns], axis=1)
            out = np.zeros((len(keys), len(columns)))
            np.add.at(out, number[inside], picked)
            both.append(out)
        return keys, both[0], both[1]

    def sequences(
        self, rows: NDArray[Any], domain: int | None = None, language: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return domain and index of the sequences of a group [sequences, 2], and the number among
        these of each of some rows, -1 for those that are not of the group."""
        chosen = np.ones(len(self.rows), dtype=bool)
        if domain is not None:
            chosen &= self.rows[:, 0] == domain
        if language is not None:
            chosen &= self.rows[:, 2] == language
        keys, inverse = np.unique(self.rows[chosen, :2], axis=0, return_inverse=True)
        number = np.full(len(self.rows), -1)
        number[chosen] = inverse.reshape(-1)
        return keys, number[rows]

    def _at(self, columns: Sequence[Column]) -> list[int]:
        return [self.columns[column] for column in columns]
