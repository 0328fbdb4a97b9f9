"""How many loops pay, judged by trained models that differ in nothing but their loops."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence

from loopcoder.diagnose.reading import Point, by_loop, trained_loops
from loopcoder.diagnose.recommend import Recommendation, training_cost
from loopcoder.diagnose.results import Diagnosis

_SAYS_NOTHING = {"num_loops", "name", "kernels", "layer_spec"}
"""Fields of a model in which those that are compared may differ."""


def compare(diagnoses: Sequence[Diagnosis]) -> Recommendation | None:
    """Return how many loops pay, each model read at its own R; None unless at least two differ in
    their loops alone, with the same tokens of training and the same data.

    From the fewest loops on, more are taken where their loss is lower by more than the interval of
    the difference. Several models of one R are seeds of it, whose spread then counts as well.
    """
    alike: dict[str, list[Diagnosis]] = {}
    for diagnosis in diagnoses:
        alike.setdefault(_everything_else(diagnosis), []).append(diagnosis)
    families = [same for same in alike.values() if len(_losses(same)) > 1]
    if not families:
        return None
    family = max(families, key=lambda same: len(_losses(same)))
    losses = {loops: _mean(points) for loops, points in sorted(_losses(family).items())}
    best = min(losses)
    reasons = []
    for loops in list(losses)[1:]:
        difference = losses[loops].minus(losses[best])
        words = f"R = {loops}: {losses[loops]} nats against {losses[best]} of R = {best}"
        if not difference.is_told_from_zero:
            reasons.append(f"{words}; not told apart, so fewer loops are taken.")
        elif difference.value > 0:
            reasons.append(f"{words}; higher by {difference.magnitude}.")
        else:
            reasons.append(f"{words}; lower by {difference.magnitude}.")
            best = loops
    if len(family) == len(losses):
        reasons.append(
            "One run of each R: the intervals are those of the data, without the spread of "
            "training seeds."
        )
    reasons.append(training_cost(family[0], max(best, 2)))
    trained = ", ".join(map(str, losses))
    return Recommendation(best, f"R = {best}, of the models trained with R = {trained}.", reasons)


def _everything_else(diagnosis: Diagnosis) -> str:
    """Return all that has to be the same for the losses of two models to be compared."""
    model = {key: v for key, v in diagnosis.model.items() if key not in _SAYS_NOTHING}
    # a corpus is its content, wherever it lies
    place = "place" if "fingerprint" in diagnosis.data else ""
    data = {key: v for key, v in diagnosis.data.items() if key != place}
    # runs of one R differ in their seed: what they disagree on is an interval of its own
    training = {key: v for key, v in diagnosis.training.items() if key != "seed"}
    return json.dumps([model, data, training], sort_keys=True)


def _losses(diagnoses: Sequence[Diagnosis]) -> dict[int, list[Point]]:
    """Return the loss at the last loop of training, by R."""
    found: dict[int, list[Point]] = {}
    for diagnosis in diagnoses:
        loops = trained_loops(diagnosis)
        if loops in (losses := by_loop(diagnosis, "loss")):
            found.setdefault(loops, []).append(losses[loops])
    return found


def _mean(seeds: Sequence[Point]) -> Point:
    """Return the mean over seeds; its interval is that of the data, or two standard errors of the
    seeds where these are wider."""
    if len(seeds) == 1:
        return seeds[0]
    value = statistics.fmean(point.value for point in seeds)
    of_seeds = 2 * statistics.stdev(point.value for point in seeds) / math.sqrt(len(seeds))
    of_data = max(point.half or 0.0 for point in seeds)  # the same data: it does not average out
    half = max(of_seeds, of_data)
    return Point(value, value - half, value + half)
