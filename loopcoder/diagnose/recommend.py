"""How many loops to train, from what was measured: a heuristic with its reasons.

No number of these proves what a model with other loops would do; only training it does. Where
several trained models differ in nothing but their loops, `compare` reads it off their losses.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loopcoder.config.schema import ModelConfig
from loopcoder.diagnose.reading import Point, Points, by_loop, number, trained_loops
from loopcoder.diagnose.results import Diagnosis
from loopcoder.errors import counted
from loopcoder.model.flops import train_flops_per_token

AT_REST = 0.1
"""Of a step: where one more loop moves a state by less than this share of what the last one did,
there is little left for it to do. Ours, not the paper's."""


_PUBLISHED = (
    "LoopCoder-v2 found that loop 2 helps and that loops 3 and 4 cost more than they bring, at 7B "
    "parameters."
)
_LENS = (
    "Loops before the last were not trained to be read unless the loss was taken on them too, so "
    "the losses of one model by loop flatter its last loop; models trained with other R tell more."
)


@dataclass(frozen=True)
class Recommendation:
    """A number of loops and what speaks for it. A heuristic."""

    loops: int
    text: str
    reasons: list[str]


@dataclass(frozen=True)
class _Signals:
    """What is known by loop."""

    loss: Points
    rank: Points
    gain: Points
    cost: Points
    alignment: Points
    step: Points
    gap: Points


def recommend(diagnosis: Diagnosis) -> Recommendation:
    """Return how many loops pay, judged by one model.

    A loop of training counts unless its loss is not below that of the loop before it, its
    effective rank falls (the paper's stop rule), or it changes the prediction less than the loop
    before it at a larger offset. A difference counts only where its 95% interval leaves out zero.
    After the last loop of training one more is recommended where the effective rank still rises.
    """
    trained = trained_loops(diagnosis)
    if trained == 1:
        cost = [_flops(diagnosis, 2)]
        return Recommendation(
            1,
            "This model has one loop, which says nothing about a second: train R = 2 and compare.",
            [_told("loss at loop 1", by_loop(diagnosis, "loss").get(1)), _PUBLISHED, *cost],
        )
    known = _Signals(
        loss=by_loop(diagnosis, "loss"),
        rank=by_loop(diagnosis, "effective_rank", "normed"),
        gain=by_loop(diagnosis, "output_shift"),
        cost=by_loop(diagnosis, "offset_cost", "raw"),
        alignment=by_loop(diagnosis, "alignment", "raw"),
        step=by_loop(diagnosis, "step_size", "raw"),
        gap=by_loop(diagnosis, "fixed_point_gap", "raw"),
    )
    reasons: list[str] = []
    loops = 1
    for loop in range(2, trained + 1):
        against = _against(known, loop, reasons)
        if against:
            reasons.append(f"Loop {loop} is not counted: {' and '.join(against)}.")
            break
        loops = loop
    _look_at_every_loop(known, trained, reasons)
    reasons.append(_flops(diagnosis, max(loops, 2)))
    reasons.append(_LENS)
    if loops < trained:
        text = f"{counted(loops, 'loop')} of the {trained} of training: the next does not pay."
        return Recommendation(loops, text, reasons)
    if _another_may_pay(known, trained, reasons):
        text = f"All {trained} loops pay, and another may: train R = {trained + 1} and compare."
        return Recommendation(trained + 1, text, reasons)
    return Recommendation(trained, f"All {trained} loops pay; nothing speaks for another.", reasons)


def _against(known: _Signals, loop: int, reasons: list[str]) -> list[str]:
    """Say what speaks against a loop; append what was looked at to `reasons`."""
    against = []
    loss = _change(known.loss, loop, "loss", "nats", reasons)
    if loss == 0:
        against.append("its loss is not told apart from that of the loop before it")
    elif loss == 1:
        against.append("its loss is higher than that of the loop before it")
    if _change(known.rank, loop, "effective rank", "", reasons) == -1:
        against.append("the effective rank falls (the paper's rule: stop)")
    if loop > 2:
        gain = _change(known.gain, loop, "output shift (gain)", "nats", reasons)
        cost = _change(known.cost, loop, "offset cost", "", reasons)
        if gain == -1 and cost == 1:
            against.append("it brings less than the loop before it at a larger offset")
    return against


def _another_may_pay(known: _Signals, trained: int, reasons: list[str]) -> bool:
    """Say whether one more loop than was trained may pay."""
    if trained not in known.rank or trained - 1 not in known.rank:
        return False
    rises = known.rank[trained].minus(known.rank[trained - 1])
    if not (rises.is_told_from_zero and rises.value > 0):
        return False
    if trained in known.gap and trained in known.step and known.step[trained].value > 0:
        ratio = known.gap[trained].value / known.step[trained].value
        if ratio < AT_REST:
            reasons.append(f"No other loop: it would move a state by {ratio:.0%} of the last step.")
            return False
    reasons.append(
        f"The effective rank still rises at loop {trained} (the paper's rule: another may pay)."
    )
    return True


def _look_at_every_loop(known: _Signals, trained: int, reasons: list[str]) -> None:
    """Append what is told without a say in the number: alignment and the fixed-point gap."""
    for loop in range(2, trained + 1):
        if loop in known.alignment:
            point = known.alignment[loop]
            said = "it is not told apart from zero"
            if point.is_told_from_zero:
                said = (
                    "the loop takes back part of the step before it: it refines, or oscillates"
                    if point.value < 0
                    else "the loop goes on in the direction of the step before it"
                )
            reasons.append(f"Alignment at loop {loop}: {point}; {said}.")
    gap, step = known.gap.get(trained), known.step.get(trained)
    if gap and step and step.value > 0:
        reasons.append(
            f"One more loop would move a state by {gap}, {gap.value / step.value:.0%} of the step "
            f"of loop {trained} ({step})."
        )


def _change(points: Points, loop: int, name: str, unit: str, reasons: list[str]) -> int | None:
    """Return 1, -1 or 0 (not told apart) for how a measure changes at a loop, with the reason in
    words; None where it was not measured."""
    if loop not in points or loop - 1 not in points:
        reasons.append(f"{name.capitalize()} at loop {loop}: not measured.")
        return None
    before, after = points[loop - 1], points[loop]
    difference = after.minus(before)
    words = f"{name.capitalize()} at loop {loop}: {before} -> {after}{f' {unit}' if unit else ''}"
    if not difference.is_told_from_zero:
        why = "" if difference.half is not None else ", without intervals"
        reasons.append(f"{words}; not told apart{why}.")
        return 0
    rises = difference.value > 0
    reasons.append(f"{words}; it {'rises' if rises else 'falls'} by {_unsigned(difference)}.")
    return 1 if rises else -1


def compare(diagnoses: Sequence[Diagnosis]) -> Recommendation | None:
    """Return how many loops pay, judged by trained models that differ in nothing but their loops,
    each read at its own R; None unless there are two such, of the same data and tokens.

    From the fewest loops on, more are taken where their loss is lower by more than the interval of
    the difference. Several models of one R are seeds of it, whose spread then counts as well.
    """
    alike: dict[str, list[Diagnosis]] = {}
    for diagnosis in diagnoses:
        alike.setdefault(_everything_else(diagnosis), []).append(diagnosis)
    families = [losses for same in alike.values() if len(losses := _losses(same)) > 1]
    if not families:
        return None
    losses = max(families, key=len)
    best = min(losses)
    reasons = [_told(f"R = {best}, loss at its last loop", losses[best][0])]
    for loops in sorted(losses)[1:]:
        difference = losses[loops][0].minus(losses[best][0])
        words = f"R = {loops}: {losses[loops][0]} nats against {losses[best][0]} of R = {best}"
        if not difference.is_told_from_zero:
            reasons.append(f"{words}; not told apart, so fewer loops are taken.")
        elif difference.value > 0:
            reasons.append(f"{words}; higher by {_unsigned(difference)}.")
        else:
            reasons.append(f"{words}; lower by {_unsigned(difference)}.")
            best = loops
    if all(number_of_runs == 1 for _, number_of_runs in losses.values()):
        reasons.append(
            "One run of each R: the intervals are those of the data, without the spread of "
            "training seeds."
        )
    some = next(d for d in diagnoses if trained_loops(d) == best)
    if best > 1:
        reasons.append(_flops(some, best))
    models = ", ".join(str(loops) for loops in sorted(losses))
    return Recommendation(best, f"Of the models trained with R = {models}: R = {best}.", reasons)


def _everything_else(diagnosis: Diagnosis) -> str:
    """Return all that has to be the same for losses of two R to be compared."""
    fields: dict[str, Any] = {**diagnosis.model, "num_loops": None}
    return repr(
        (
            sorted(fields.items(), key=str),
            diagnosis.trained_tokens,
            sorted(diagnosis.data.items(), key=str),
        )
    )


def _losses(diagnoses: Sequence[Diagnosis]) -> dict[int, tuple[Point, int]]:
    """Return the loss by R with the number of runs that it is the mean of."""
    found: dict[int, list[Point]] = {}
    for diagnosis in diagnoses:
        loops = trained_loops(diagnosis)
        if loops in (losses := by_loop(diagnosis, "loss")):
            found.setdefault(loops, []).append(losses[loops])
    return {loops: (_mean(points), len(points)) for loops, points in found.items()}


def _mean(points: Sequence[Point]) -> Point:
    """Return the mean over seeds; its interval is that of the data, or that of two standard errors
    of the seeds where this is wider."""
    if len(points) == 1:
        return points[0]
    value = statistics.fmean(point.value for point in points)
    of_seeds = 2 * statistics.stdev(point.value for point in points) / math.sqrt(len(points))
    of_data = max((point.half or 0.0) for point in points)  # the same data: it does not average out
    half = max(of_seeds, of_data)
    return Point(value, value - half, value + half)


def _flops(diagnosis: Diagnosis, loops: int) -> str:
    """Say what training costs with so many loops."""
    unknown = "What a loop costs in FLOPs is not known: the file lacks "
    if not (vocab_size := diagnosis.model.get("vocab_size")):
        return f"{unknown}the size of the vocabulary."
    if not (seq_length := diagnosis.data.get("seq_length")):
        return f"{unknown}the length of the sequences."
    try:
        one, several = (
            train_flops_per_token(
                ModelConfig(**{**diagnosis.model, "num_loops": n}), vocab_size, seq_length
            )[0]
            for n in (1, loops)
        )
    except (TypeError, ValueError):
        return f"{unknown}the fields of a model as this version has them."
    return (
        f"Training with R = {loops} costs {several / one:.2f} times the FLOPs of R = 1 per token "
        f"({several / 1e9:,.3g} against {one / 1e9:,.3g} GFLOP)."
    )


def _told(name: str, point: Point | None) -> str:
    return f"{name[:1].upper()}{name[1:]}: {'not measured' if point is None else f'{point} nats'}."


def _unsigned(difference: Point) -> str:
    value = abs(difference.value)
    half = difference.half
    return number(value) if half is None else str(Point(value, value - half, value + half))
