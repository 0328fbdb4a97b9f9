"""How many loops to train, judged by one trained model: a heuristic with its reasons.

Nothing that is measured of one model proves what another one with more or fewer loops would do;
`compare` reads that off trained models where there are several.
"""

from __future__ import annotations

from dataclasses import dataclass

from loopcoder.config.schema import ModelConfig
from loopcoder.diagnose.reading import Point, Points, by_loop, trained_loops
from loopcoder.diagnose.results import Diagnosis
from loopcoder.model.flops import train_flops_per_token

AT_REST = 0.1
"""Of a step: where one more loop moves a state by less than this share of what the last one did,
there is little left for it to do. Ours, not the paper's."""
_PUBLISHED = (
    "LoopCoder-v2 found that loop 2 helps and that loops 3 and 4 cost more than they bring, at 7B "
    "parameters."
)
_LENS = (
    "Unless the loss was taken on them too, loops before the last were not trained to be read, so "
    "the losses of one model by loop flatter its last loop; models trained with other R tell more."
)


@dataclass(frozen=True)
class Recommendation:
    """A number of loops and what speaks for it. A heuristic."""

    loops: int
    text: str
    reasons: list[str]


@dataclass(frozen=True)
class _Change:
    """How a measure changes at a loop: up 1, down -1, not told apart 0, not measured None."""

    direction: int | None
    words: str


def recommend(diagnosis: Diagnosis) -> Recommendation:
    """Return how many loops pay in a model.

    A loop of training counts unless its loss was not measured or is not below that of the loop
    before it, its effective rank falls (the paper's stop rule), or it changes the prediction less
    than the loop before it at a larger offset. A difference counts only where its 95% interval
    leaves out zero.
    After the last loop of training one more is recommended where the effective rank still rises,
    unless one more would hardly move the states.
    """
    trained = trained_loops(diagnosis)
    if trained == 1:
        loss = by_loop(diagnosis, "loss").get(1)
        said = f"Loss: {loss} nats." if loss else "Loss: not measured."
        return Recommendation(
            1,
            "One loop, which says nothing about a second: train R = 2 and compare.",
            [said, _PUBLISHED, training_cost(diagnosis, 2)],
        )
    reasons: list[str] = []
    loops, why = 1, ""
    for loop in range(2, trained + 1):
        against = _against(diagnosis, loop, reasons)
        if against:
            why = " and ".join(against)
            reasons.append(f"Loop {loop} is not counted: {why}.")
            break
        loops = loop
    reasons += _alignments(diagnosis, trained)
    ratio = _gap_by_step(diagnosis, trained, reasons)
    text = f"R = {loops}: loop {loops + 1} of the {trained} of training is not seen to pay: {why}."
    if loops == trained:
        text = f"R = {trained}: every loop of training pays; nothing speaks for another."
        if _at(diagnosis, "effective_rank", "normed", trained, "").direction == 1:
            if ratio is None or ratio >= AT_REST:
                loops = trained + 1
                text = f"R = {loops}: every loop of training pays, and another may; train it too."
                reasons.append(
                    f"The effective rank still rises at loop {trained} (the paper's rule: another "
                    "may pay)."
                )
            else:
                reasons.append(
                    f"The effective rank still rises at loop {trained}, but one more loop would "
                    f"hardly move the states (less than {AT_REST:.0%} of the last step)."
                )
    return Recommendation(loops, text, [*reasons, training_cost(diagnosis, max(loops, 2)), _LENS])


def _against(diagnosis: Diagnosis, loop: int, reasons: list[str]) -> list[str]:
    """Return what speaks against a loop; append what was looked at to `reasons`."""
    loss = _loss(diagnosis, loop)
    rank = _at(diagnosis, "effective_rank", "normed", loop, "Effective rank")
    looked_at = [loss, rank]
    against = []
    if loss.direction is None:
        against.append("its loss was not measured")
    elif loss.direction == 0:
        against.append("its loss is not told apart from that of the loop before it")
    elif loss.direction == 1:
        against.append("its loss is higher than that of the loop before it")
    if rank.direction == -1:
        against.append("the effective rank falls (the paper's rule: stop)")
    if loop > 2:
        gain = _at(diagnosis, "output_shift", "", loop, "Output shift (gain)", "nats")
        cost = _at(diagnosis, "offset_cost", "raw", loop, "Offset cost")
        looked_at += [gain, cost]
        if (gain.direction, cost.direction) == (-1, 1):
            against.append("it brings less than the loop before it at a larger offset")
    reasons += [change.words for change in looked_at]
    return against


def _loss(diagnosis: Diagnosis, loop: int) -> _Change:
    """Return how the loss changes at a loop, from differences paired by token where there are."""
    gain = by_loop(diagnosis, "loss_gain").get(loop)
    paired = gain and Point(0.0, 0.0, 0.0).minus(gain)
    return _at(diagnosis, "loss", "", loop, "Loss", "nats", paired)


def _at(
    diagnosis: Diagnosis,
    measure: str,
    variant: str,
    loop: int,
    name: str,
    unit: str = "",
    paired: Point | None = None,
) -> _Change:
    """Return how a measure changes at a loop; `paired` is the difference, if it was measured."""
    points: Points = by_loop(diagnosis, measure, variant)
    if loop not in points or loop - 1 not in points:
        return _Change(None, f"{name} at loop {loop}: not measured.")
    before, after = points[loop - 1], points[loop]
    difference = paired or after.minus(before)
    words = f"{name} at loop {loop}: {before} → {after}{f' {unit}' if unit else ''}"
    if not difference.is_told_from_zero:
        why = "" if difference.half is not None else ", as there are no intervals"
        return _Change(0, f"{words}; not told apart{why}.")
    if difference.value > 0:
        return _Change(1, f"{words}; it rises by {difference.magnitude}.")
    return _Change(-1, f"{words}; it falls by {difference.magnitude}.")


def _alignments(diagnosis: Diagnosis, trained: int) -> list[str]:
    """Return what the alignments say; they have no say in the number."""
    reasons = []
    for loop, point in by_loop(diagnosis, "alignment", "raw").items():
        if loop > trained:
            continue
        said = "not told apart from zero"
        if point.is_told_from_zero and point.value < 0:
            said = "the loop takes back part of the step before it: it refines, or oscillates"
        elif point.is_told_from_zero:
            said = "the loop goes on in the direction of the step before it"
        reasons.append(f"Alignment at loop {loop}, of raw states: {point}; {said}.")
    return reasons


def _gap_by_step(diagnosis: Diagnosis, loop: int, reasons: list[str]) -> float | None:
    """Return the fixed-point gap as a share of the step of a loop, telling it."""
    gap = by_loop(diagnosis, "fixed_point_gap", "raw").get(loop)
    step = by_loop(diagnosis, "step_size", "raw").get(loop)
    if gap is None or step is None or step.value <= 0:
        reasons.append(f"Fixed-point gap at loop {loop}: not measured.")
        return None
    ratio = gap.value / step.value
    reasons.append(
        f"One more loop would move a state by {gap}, {ratio:.0%} of the step of loop {loop} "
        f"({step})."
    )
    return ratio


def training_cost(diagnosis: Diagnosis, loops: int) -> str:
    """Say what training such a model costs with so many loops, at least two."""
    unknown = "What a loop costs in FLOPs is not known: the file lacks "
    if not (vocab_size := diagnosis.model.get("vocab_size")):
        return f"{unknown}the size of the vocabulary."
    if not (seq_length := diagnosis.data.get("sequence_length")):
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
