"""From sums by sequence to the series of a diagnosis: means with their intervals, by group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loopcoder.diagnose.estimates import (
    Estimate,
    mean_of,
    median_of,
    share_of,
    weighted_mean_of,
)
from loopcoder.diagnose.results import ALL, Exit, Series
from loopcoder.diagnose.table import Column, Merged
from loopcoder.train.by_domain import field_of


@dataclass(frozen=True)
class Kind:
    """A measure that is a mean."""

    measure: str
    variants: tuple[str, ...] = ("",)
    unit: str = ""
    by_layer: bool = False
    of_tokens: bool = True
    """Of tokens, which have a language; otherwise of sequences."""


_STATES, _MAPS = ("raw", "normed"), ("all", "no_first")
KINDS = (
    Kind("step_size", _STATES),
    Kind("alignment", _STATES),
    Kind("effective_rank", ("normed",), of_tokens=False),
    Kind("fixed_point_gap", _STATES),
    Kind("offset_cost", _STATES),
    Kind("attention_entropy", _MAPS, "nats", by_layer=True),
    Kind("attention_change", _MAPS, "nats", by_layer=True),
    Kind("head_rank", by_layer=True, of_tokens=False),
    Kind("head_cosine", by_layer=True, of_tokens=False),
    Kind("gate", by_layer=True),
    Kind("output_entropy", unit="nats"),
    Kind("loss", unit="nats"),
    Kind("output_shift", unit="nats"),
    Kind("loss_gain", unit="nats"),
    Kind("top1"),
    Kind("concentration", ("largest_shift",)),
)
"""docs/diagnostics.md says what each of them is."""
_SHARES = ("output_shift", ""), ("attention_change", "all")
"""Measures of which each loop has a share of the sum over loops, by variant of `concentration`."""


@dataclass(frozen=True)
class Groups:
    """The parts of the data that have series of their own."""

    domains: list[str]
    """By index."""
    languages: list[str]
    """By index; [] where there is one."""
    mixture: Mapping[str, float]
    """Weight of each domain in the mean over all, as in the loss of an evaluation."""

    @cached_property
    def weights(self) -> Tensor:
        return torch.tensor([float(self.mixture.get(domain, 0)) for domain in self.domains])

    def of_tokens(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Yield the name of each group, and what chooses its rows."""
        yield from self.of_sequences()
        for index, language in enumerate(self.languages):
            yield f"language/{language}", {"language": index}

    def of_sequences(self) -> Iterator[tuple[str, dict[str, int]]]:
        yield ALL, {}
        for index, domain in enumerate(self.domains):
            yield f"domain/{field_of(domain)}", {"domain": index}


def series_of(merged: Merged, groups: Groups, loops: int) -> tuple[list[Series], list[str]]:
    """Return all series, and what to say of numbers that are missing from them."""
    maker = _Maker(merged, groups, loops)
    found: list[Series] = []
    for kind in KINDS:
        for group, rows in groups.of_tokens() if kind.of_tokens else groups.of_sequences():
            for variant in kind.variants:
                found += maker.means(kind, variant, group, rows)
    for group, rows in groups.of_tokens():
        found += [s for measure, v in _SHARES if (s := maker.shares(measure, v, group, rows))]
        if rank := maker.median(group, rows):
            found.append(rank)
    return found, maker.notes()


def exits_of(merged: Merged, groups: Groups) -> list[Exit]:
    """Return what leaving the loops early would do, over all tokens."""
    maker = _Maker(merged, groups, 0)
    rules = dict.fromkeys(c.variant for c in merged.columns if c.measure == "exit_loops")
    found = []
    for rule in rules:
        columns = [
            [c for c in merged.columns if (c.measure, c.variant) == (f"exit_{name}", rule)]
            for name in ("loops", "loss", "agreement")
        ]
        mean_loops, loss, agreement = maker.estimate(columns, {}).value
        name, _, threshold = rule.partition("@")
        if None not in (mean_loops, loss, agreement):
            found.append(Exit(name, float(threshold), mean_loops, loss, agreement))
    return found


class _Maker:
    """Makes series of sums; those that are not finite are left out, and noted."""

    def __init__(self, merged: Merged, groups: Groups, loops: int):
        self._merged, self._groups, self._loops = merged, groups, loops
        self._not_finite: dict[str, None] = {}

    def notes(self) -> list[str]:
        if not self._not_finite:
            return []
        return [f"not finite at some tokens, so there is no mean: {', '.join(self._not_finite)}"]

    def means(self, kind: Kind, variant: str, group: str, rows: dict[str, int]) -> Iterator[Series]:
        """Yield a measure over all layers, and by layer where it has them."""
        there = [
            c for c in self._merged.columns if (c.measure, c.variant) == (kind.measure, variant)
        ]
        if not there:
            return
        loops = [[c for c in there if c.loop == loop] for loop in self._all_loops]
        estimate = self.estimate(loops, rows)
        yield self._series(kind.measure, variant, kind.unit, group, None, estimate)
        if kind.by_layer:
            layers = sorted({c.layer for c in there if c.layer is not None})
            each = [[[c for c in of if c.layer == n] for n in layers] for of in loops]
            flat = self.estimate([some for of in each for some in of], rows)
            estimate = Estimate(
                *(_in_rows(x, len(layers)) for x in (flat.value, flat.low, flat.high, flat.count))
            )
            yield self._series(kind.measure, variant, kind.unit, group, layers, estimate)

    @property
    def _all_loops(self) -> range:
        return range(1, self._loops + 1)

    def _series(
        self,
        measure: str,
        variant: str,
        unit: str,
        group: str,
        layers: list[int] | None,
        estimate: Estimate,
    ) -> Series:
        found = estimate.value, estimate.low, estimate.high, estimate.count
        return Series(measure, variant, unit, group, list(self._all_loops), layers, *found)

    def shares(self, measure: str, variant: str, group: str, rows: dict[str, int]) -> Series | None:
        """Return the share of each loop in the sum over loops; None: there is no such sum."""
        there = [c for c in self._merged.columns if (c.measure, c.variant) == (measure, variant)]
        loops = sorted({c.loop for c in there})
        if len(loops) < 2:
            return None
        columns = [[c for c in there if c.loop == loop] for loop in loops]
        keys, sums, counts = self._merged.by_sequence(columns, **rows)
        if not np.isfinite(sums).all():
            self._not_finite[measure] = None
            return None
        # the weights of the domains are taken for certain: what is random is what a sequence has
        scale = self._scales(keys, counts[:, 0], rows)[:, None]
        found = share_of(torch.from_numpy(sums * scale), torch.from_numpy(counts))
        parts = (
            _by_loop(x, loops, self._all_loops)
            for x in (found.value, found.low, found.high, found.count)
        )
        return self._series("concentration", measure, "", group, None, Estimate(*parts))

    def median(self, group: str, rows: dict[str, int]) -> Series | None:
        """Return the median rank of the true next token."""
        estimates = []
        for loop in self._all_loops:
            row, ranks = self._merged.kept[Column("rank", "", loop)]
            keys, number = self._merged.sequences(row, **rows)
            inside = number >= 0
            values, bins = np.unique(ranks[inside], return_inverse=True)
            histograms = np.zeros((len(keys), len(values)))
            np.add.at(histograms, (number[inside], bins.reshape(-1)), 1)
            scale = self._scales(keys, histograms.sum(1), rows)[:, None]
            estimates.append(
                median_of(torch.from_numpy(histograms * scale), torch.from_numpy(values))
                if len(values)
                else Estimate(None, None, None, 0)
            )
        parts = (
            [getattr(e, name) for e in estimates] for name in ("value", "low", "high", "count")
        )
        return self._series("rank", "", "", group, None, Estimate(*parts))

    def _scales(
        self, keys: NDArray[np.int64], counts: NDArray[np.float64], rows: dict[str, int]
    ) -> NDArray[np.float64]:
        """Return by what sums of each sequence are multiplied, so that domains have their weights
        and all tokens together count as many as they are."""
        if rows:
            return np.ones(len(keys))
        domains = keys[:, 0]
        of_domain = np.bincount(domains, counts, len(self._groups.domains))
        weights = self._groups.weights.numpy() * (of_domain > 0)
        share = np.divide(weights, of_domain, out=np.zeros_like(of_domain), where=of_domain > 0)
        return share[domains] * counts.sum() / weights.sum()

    def estimate(self, columns: Sequence[Sequence[Column]], rows: dict[str, int]) -> Estimate:
        """Return the mean of each sum of columns; None where there are none of a kind.

        Args:
            rows: Chooses the rows of a group; {}: domains by their weights.
        """
        keys, sums, counts = self._merged.by_sequence(columns, **rows)
        bad = ~np.isfinite(sums).all(0)
        self._not_finite |= {columns[i][0].measure: None for i in bad.nonzero()[0].tolist()}
        sums, counts = np.where(bad, 0, sums), np.where(bad, 0, counts)
        if rows:
            found = mean_of(torch.from_numpy(sums), torch.from_numpy(counts))
        else:
            found = self._over_domains(keys, sums, counts)
        return found

    def _over_domains(
        self, keys: NDArray[np.int64], sums: NDArray[np.float64], counts: NDArray[np.float64]
    ) -> Estimate:
        """Return the mean over domains, of which those count that have tokens."""
        domains = len(self._groups.domains)
        apart = np.zeros((2, len(keys), domains, sums.shape[1]))
        apart[0, np.arange(len(keys)), keys[:, 0]] = sums
        apart[1, np.arange(len(keys)), keys[:, 0]] = counts
        there = torch.from_numpy((counts.sum(1) > 0)[:, None] & (keys[:, :1] == np.arange(domains)))
        weights = self._groups.weights * there.any(0)
        return weighted_mean_of(torch.from_numpy(apart[0]), torch.from_numpy(apart[1]), weights)


def _in_rows(flat: Sequence[Any], width: int) -> list[list[Any]]:
    return [list(flat[i : i + width]) for i in range(0, len(flat), width)]


def _by_loop(values: Sequence[Any], loops: Sequence[int], all_loops: Sequence[int]) -> list[Any]:
    found = dict(zip(loops, values, strict=True))
    return [found.get(loop) for loop in all_loops]
