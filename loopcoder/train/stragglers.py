"""Which ranks are slow: all others wait for them in every step."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, median_low
from typing import Any

import torch
import torch.distributed as dist

from loopcoder.config.faults import FaultsConfig
from loopcoder.parallel.mcore import Ranks

WINDOW_S = 10.0
"""Seconds that a window lasts at least: other programs on a machine come and go within some."""
WINDOWS = 3
"""Windows in a row in which a rank is slow before it is named."""


@dataclass(frozen=True)
class Place:
    """Where a rank runs, and which part of the model it has."""

    host: str
    stage: int
    """Its pipeline stage: those of another stage have other work."""


@dataclass(frozen=True)
class SlowRank:
    """A rank that takes longer than the others of its pipeline stage, window after window."""

    step: int
    rank: int
    host: str
    ratio: float
    """Its compute time by the median of its stage."""
    compute_s: float
    """Per step, in the newest window."""


def places_of(ranks: Ranks) -> list[Place]:
    """Return where every rank is; all ranks call it."""
    found: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(found, Place(socket.gethostname(), ranks.pp_rank))
    return found


def gather(values: Sequence[float], device: torch.device) -> list[list[float]]:
    """Return some numbers of every rank, [numbers][ranks]; all ranks call it."""
    mine = torch.tensor(values, dtype=torch.float64, device=device)
    everybody = mine.new_empty(dist.get_world_size() * len(values))
    dist.all_gather_into_tensor(everybody, mine)
    return everybody.view(-1, len(values)).T.tolist()


class Stragglers:
    """Compares the compute time of ranks, window by window (rank 0).

    In each window a rank has the median of its steps, which single disturbed ones do not move. Slow
    is who is above the median of its pipeline stage by `faults.slow_rank` in `WINDOWS` windows in a
    row. It is named once, and again after a window in which it was not slow. Ranks of a tensor-
    parallel group wait for each other inside of a pass, so that all of them are slow with one.
    """

    def __init__(
        self,
        faults: FaultsConfig,
        places: Sequence[Place],
        step: int = 0,
        *,
        window_s: float = WINDOW_S,
        clock: Callable[[], float] = time.monotonic,
    ):
        """
        Args:
            step: Steps that are done already.
        """
        self._window_s, self._clock, self._began_at = window_s, clock, clock()
        self._factor, self._window, self._places = faults.slow_rank, faults.slow_window, places
        self._lines: list[Sequence[float]] = []
        self._began = step
        """Step before those of the window."""
        self._in_a_row = [0] * len(places)

    def fields(self, seconds: Sequence[float]) -> dict[str, float]:
        """Return the fields of a record, of the compute time of each rank."""
        found = {"compute_s": median(seconds)}
        if len(seconds) > 1:
            ratios = self._ratios(seconds)
            slowest = ratios.index(max(ratios))
            found["compute_s/slowest"] = seconds[slowest]
            found["compute_s/slowest_rank"] = slowest
        return found

    def judge(self, step: int, seconds: Sequence[float]) -> list[SlowRank]:
        """Take the compute time of each rank in the steps up to this one since the last call;
        return the ranks that are to be named."""
        if self._factor is None or len(seconds) == 1:
            return []
        self._lines.append(seconds)
        now = self._clock()
        if step - self._began < self._window or now - self._began_at < self._window_s:
            return []
        medians = [median(of_rank) for of_rank in zip(*self._lines, strict=True)]
        self._lines, self._began, self._began_at = [], step, now
        found = []
        for rank, ratio in enumerate(self._ratios(medians)):
            self._in_a_row[rank] = self._in_a_row[rank] + 1 if ratio > self._factor else 0
            if self._in_a_row[rank] == WINDOWS:
                host = self._places[rank].host
                took = round(medians[rank], 6)
                found.append(SlowRank(step, rank, host, round(ratio, 3), took))
        return found

    def _ratios(self, seconds: Sequence[float]) -> list[float]:
        by_stage: dict[int, list[float]] = {}
        for place, own in zip(self._places, seconds, strict=True):
            by_stage.setdefault(place.stage, []).append(own)
        # of two ranks the faster is what the slower is compared with
        typical = {stage: median_low(of_stage) for stage, of_stage in by_stage.items()}
        return [
            own / typical[place.stage] if typical[place.stage] > 0 else 1.0
            for place, own in zip(self._places, seconds, strict=True)
        ]
