"""What the loops of a sweep bring: against one loop, against as many layers, and as phi."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loopcoder.config.schema import ModelConfig
from loopcoder.metrics.phi import Phi, estimate_phi
from loopcoder.metrics.published import EQUAL_FLOPS, EQUAL_WEIGHTS, Published
from loopcoder.metrics.seeds import Mean, paired_difference
from loopcoder.metrics.sweep_rows import PointRow


@dataclass(frozen=True)
class LoopRow:
    """One looped point beside the dense ones."""

    point: str
    loops: int
    equal_weights: Mean | None
    """Validation loss less that of R = 1, nats."""
    published_equal_weights: Published | None
    equal_flops: Mean | None
    """Validation loss of R = 2 less that of twice the layers, nats."""
    published_equal_flops: Published | None
    phi: Phi | None


@dataclass(frozen=True)
class Loops:
    """What a sweep says about loops."""

    one: str
    """The point that the others are compared with: R = 1."""
    dense: str | None
    """The point with R = 1 and twice the layers, if there is one."""
    rows: list[LoopRow]
    fit: Phi | None
    """phi over all R of the points that differ from the first in nothing but R."""


def compare_loops(points: Sequence[PointRow]) -> Loops | None:
    """Compare the looped points with the first; None unless that has R = 1 and others have more."""
    if not points or points[0].model.num_loops > 1:
        return None
    one, layers = points[0], points[0].model.num_layers
    looped = [p for p in points if p.model.num_loops > 1 and p.model.num_layers == layers]
    if not looped:
        return None
    doubled = [p for p in points if p.model.num_loops == 1 and p.model.num_layers == 2 * layers]
    dense = doubled[0] if len(doubled) == 1 else None  # of several none is the counterpart of all
    plain = [p for p in looped if differs_in_loops_only(p.model, one.model)]
    by_loops = {p.model.num_loops: p.loss for p in plain}
    fit = None
    if dense and 1 < len(by_loops) == len(plain):
        fit = estimate_phi(one.loss, dense.loss, by_loops)
    return Loops(
        one=one.point,
        dense=dense.point if dense else None,
        rows=[_row(point, one, dense) for point in looped],
        fit=fit,
    )


def differs_in_loops_only(model: ModelConfig, other: ModelConfig) -> bool:
    """Say whether two models have the same weights and rules, whatever computes them."""
    same = replace(model, num_loops=other.num_loops, kernels=other.kernels, name=other.name)
    return same == other


def _row(point: PointRow, one: PointRow, dense: PointRow | None) -> LoopRow:
    loops = point.model.num_loops
    at_equal_flops = paired_difference(point.loss, dense.loss) if dense and loops == 2 else None
    return LoopRow(
        point=point.point,
        loops=loops,
        equal_weights=paired_difference(point.loss, one.loss),
        published_equal_weights=EQUAL_WEIGHTS.get(loops),
        equal_flops=at_equal_flops,
        published_equal_flops=EQUAL_FLOPS.get(loops) if at_equal_flops else None,
        phi=estimate_phi(one.loss, dense.loss, {loops: point.loss}) if dense else None,
    )
