"""What reports read out of diagnoses: values with their intervals, differences, names."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loopcoder.diagnose.results import ALL, Diagnosis, Series
from loopcoder.page import printable

Points = dict[int, "Point"]
"""By loop, counted from 1, or by layer, counted from 0; what is not defined is left out."""


@dataclass(frozen=True)
class Point:
    """A value and its 95% interval; None where it has none, as with a single sequence."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def half(self) -> float | None:
        """Half the width of the interval, the wider side of it."""
        if self.low is None or self.high is None:
            return None
        return max(self.value - self.low, self.high - self.value, 0.0)

    @property
    def is_told_from_zero(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    @property
    def magnitude(self) -> Point:
        """The value without its sign, its interval as wide."""
        if self.value >= 0:
            return self
        return Point(0.0, 0.0, 0.0).minus(self)

    def minus(self, other: Point) -> Point:
        """Return the difference with its interval.

        The two are taken to be independent. Values of the same tokens vary together, so the
        interval is wider than one of paired differences would be.
        """
        value = self.value - other.value
        bounds = (self.low, self.high, other.low, other.high)
        if any(bound is None for bound in bounds):
            return Point(value)
        low, high, other_low, other_high = (float(bound or 0.0) for bound in bounds)
        below = math.hypot(self.value - low, other_high - other.value)
        above = math.hypot(high - self.value, other.value - other_low)
        return Point(value, value - below, value + above)

    def __str__(self) -> str:
        half = self.half
        if not half:
            return number(self.value)
        decimals = max(1 - math.floor(math.log10(half)), 0)
        if decimals > 7:
            return f"{self.value:.4g} ± {half:.2g}"
        return f"{self.value:,.{decimals}f} ± {half:,.{decimals}f}"


def number(value: float) -> str:
    """Return a number with four digits; a whole one without decimals."""
    if not math.isfinite(value):
        return f"{value:g}"
    if value == round(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    decimals = 3 - math.floor(math.log10(abs(value)))
    return f"{value:,.{decimals}f}" if 0 <= decimals <= 7 else f"{value:,.4g}"


def by_loop(
    diagnosis: Diagnosis,
    measure: str,
    variant: str = "",
    group: str = ALL,
    layer: int | None = None,
) -> Points:
    """Return a measure by loop, of one layer or of those that have no layers."""
    for series in _found(diagnosis, measure, variant, group):
        if (series.layers is None) != (layer is None):
            continue
        at = series.layers.index(layer) if layer is not None and series.layers else None
        points = ((loop, _point(series, i, at)) for i, loop in enumerate(series.loops))
        return {loop: point for loop, point in points if point is not None}
    return {}


def by_layer(
    diagnosis: Diagnosis, measure: str, variant: str = "", group: str = ALL
) -> dict[int, Points]:
    """Return a measure that layers have, by loop and in it by layer."""
    found: dict[int, Points] = {}
    for series in _found(diagnosis, measure, variant, group):
        for j, layer in enumerate(series.layers or ()):
            for i, loop in enumerate(series.loops):
                point = _point(series, i, j)
                if point is not None:
                    found.setdefault(loop, {})[layer] = point
    return found


def count_of(diagnosis: Diagnosis, measure: str, variant: str, group: str) -> float | None:
    """Return how many tokens, queries or sequences the value of the last loop is the mean of."""
    for series in _found(diagnosis, measure, variant, group):
        if series.layers is None:
            return next((float(c) for c in reversed(series.counts) if c is not None), None)
    return None


def not_finite(diagnosis: Diagnosis) -> list[str]:
    """Return the names of series with a value that is NaN or infinite; no report draws it."""

    def has_fault(values: list[Any]) -> bool:
        return any(
            has_fault(v) if isinstance(v, list) else v is not None and not math.isfinite(v)
            for v in values
        )

    found = (s for s in diagnosis.series if has_fault(s.values))
    return sorted({" ".join(filter(None, (s.measure, s.variant, s.group))) for s in found})


def trained_loops(diagnosis: Diagnosis) -> int:
    """Return R, the loops of training."""
    return int(diagnosis.model["num_loops"])


def reads_every_loop(diagnosis: Diagnosis) -> bool:
    """Whether the loss of training was taken on loops before the last as well."""
    objective = diagnosis.training["objective"]
    weights = objective["loop_weights"] or []
    return any(weights[:-1]) or objective["exit"] or objective["loop_count"] != "fixed"


def labels(diagnoses: Sequence[Diagnosis], longest: int = 40) -> list[str]:
    """Return a short name for each, no two the same: its own, cut in its middle, and where that
    is not enough its step or place in the list."""
    names = [" ".join(printable(d.name).split()) or "unnamed" for d in diagnoses]
    count = Counter(names)
    names = [
        f"{name}, step {d.step}" if count[name] > 1 else name
        for name, d in zip(names, diagnoses, strict=True)
    ]
    short = [cut(name, longest) for name in names]
    count = Counter(short)
    return [f"{cut(s, longest - 4)} #{i}" if count[s] > 1 else s for i, s in enumerate(short, 1)]


def cut(name: str, longest: int = 40) -> str:
    """Return a name without its middle, where it is longer than `longest` characters."""
    if len(name) <= longest:
        return name
    head = (longest - 1) // 2
    return f"{name[:head].rstrip()}…{name[len(name) - (longest - 1 - head) :].lstrip()}"


def _found(diagnosis: Diagnosis, measure: str, variant: str, group: str) -> Iterator[Series]:
    wanted = (measure, variant, group)
    return (s for s in diagnosis.series if (s.measure, s.variant, s.group) == wanted)


def _point(series: Series, i: int, j: int | None) -> Point | None:
    value, low, high = (
        _finite(values[i] if j is None or values[i] is None else values[i][j])
        for values in (series.values, series.low, series.high)
    )
    return None if value is None else Point(value, low, high)


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
