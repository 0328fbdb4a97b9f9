"""The tables of a report on diagnoses: checkpoints, loops, groups, layers, exits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loopcoder.diagnose.definitions import MEASURES, title
from loopcoder.diagnose.reading import Point, by_layer, by_loop, count_of, number, trained_loops
from loopcoder.diagnose.results import ALL, Diagnosis
from loopcoder.diagnose.token_figures import EXITS
from loopcoder.page import Html, Number, element, join, table, text

_PREDICTION = (
    ("loss", ""),
    ("loss_gain", ""),
    ("top1", ""),
    ("rank", ""),
    ("output_entropy", ""),
    ("output_shift", ""),
)
_STATES = (
    ("offset_cost", "raw"),
    ("step_size", "raw"),
    ("alignment", "raw"),
    ("effective_rank", "normed"),
    ("fixed_point_gap", "raw"),
    ("gate", ""),
)
_DATA = ("place", "split", "sequences", "tokens", "sequence_length", "seed")
"""What is said of the data at once; the rest is folded."""


@dataclass(frozen=True)
class _Cell(Number):
    """A value with its interval; empty where it is not defined."""

    point: Point | None = None

    def html(self) -> Html:
        return text("" if self.point is None else self.point)


def _cell(point: Point | None) -> _Cell:
    return _Cell(None, point=point)


def facts(diagnoses: Sequence[Diagnosis], short: Sequence[str]) -> Html:
    """Return which checkpoints, data and programs the numbers come from."""
    rows = [
        (
            name,
            Number(trained_loops(d)),
            Number(d.loops),
            Number(d.step),
            Number(d.trained_tokens),
            element("code", d.checkpoint),
        )
        for name, d in zip(short, diagnoses, strict=True)
    ]
    head = ("name", "R of training", "loops run", "step", "tokens of training", "checkpoint")
    parts = [table(head, rows, caption="Checkpoints"), _data(diagnoses, short)]
    for name, d in zip(short, diagnoses, strict=True):
        details = [
            (key, element("code", _shown(value)))
            for fields in ({"name": d.name}, d.data, d.made, d.model)
            for key, value in fields.items()
        ]
        summary = element("summary", f"{name}: data, program, model")
        parts.append(element("details", summary, table(("", ""), details)))
    return join(parts)


def _data(diagnoses: Sequence[Diagnosis], short: Sequence[str]) -> Html:
    """Return what the checkpoints were measured on, one row for those with the same."""
    same: dict[tuple[str, ...], list[str]] = {}
    for name, d in zip(short, diagnoses, strict=True):
        key = tuple(_shown(d.data[field]) if field in d.data else "" for field in _DATA)
        same.setdefault(key, []).append(name)
    rows = [
        (*key, "all of them" if len(names) == len(short) else ", ".join(names))
        for key, names in same.items()
    ]
    head = (*(field.replace("_", " ") for field in _DATA), "used for")
    return table(head, rows, caption="Data")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(part)}" for key, part in value.items())
    return json.dumps(value, ensure_ascii=False, default=str)


def overview(diagnoses: Sequence[Diagnosis], short: Sequence[str]) -> Html:
    """Return one row for each checkpoint and loop: of the prediction, and of the states."""
    both = (
        (_PREDICTION, "The prediction, over all tokens; value ± half of its 95% interval"),
        (_STATES, "The states, over all tokens; norms in the residual stream"),
    )
    return join(_by_loop(diagnoses, short, measures, caption) for measures, caption in both)


def _by_loop(
    diagnoses: Sequence[Diagnosis],
    short: Sequence[str],
    measures: Sequence[tuple[str, str]],
    caption: str,
) -> Html:
    taken = [m for m in measures if any(by_loop(d, *m) for d in diagnoses)]
    if not taken:
        return Html("")
    rows = []
    for name, d in zip(short, diagnoses, strict=True):
        columns = [by_loop(d, *measure) for measure in taken]
        for loop in range(1, d.loops + 1):
            beyond = " (beyond R)" if loop > trained_loops(d) else ""
            cells = [_cell(column.get(loop)) for column in columns]
            rows.append((name if loop == 1 else "", f"{loop}{beyond}", *cells))
    heads = [MEASURES[measure].title for measure, _ in taken]
    return table(("", "loop", *heads), rows, caption=caption)


def exits(diagnoses: Sequence[Diagnosis], short: Sequence[str]) -> Html:
    """Return what leaving early would do, and that it saves nothing here."""
    rows = [
        (
            name if i == 0 else "",
            e.rule,
            *(Number(value, ".4g") for value in (e.threshold, e.mean_loops, e.loss)),
            Number(e.agreement, ".1%"),
        )
        for name, d in zip(short, diagnoses, strict=True)
        for i, e in enumerate(d.exits)
    ]
    if not rows:
        return Html("")
    head = ("", "rule", "threshold", "mean loops", "loss (nats)", "same token as the last loop")
    return join((element("p", EXITS), table(head, rows, caption="Exits")))


def groups(diagnoses: Sequence[Diagnosis], short: Sequence[str]) -> Html:
    """Return a table for each measure: a row for each checkpoint and group."""
    parts = []
    for measure, variant in _measures(diagnoses):
        rows = []
        most = max(d.loops for d in diagnoses)
        for name, d in zip(short, diagnoses, strict=True):
            for group in d.groups():
                if points := by_loop(d, measure, variant, group):
                    cells = [_cell(points.get(loop)) for loop in range(1, most + 1)]
                    rows.append((name, group, Number(count_of(d, measure, variant, group)), *cells))
        if rows:
            loops = [f"loop {loop}" for loop in range(1, most + 1)]
            parts.append(_folded(measure, variant, ("", "group", "count", *loops), rows))
    return join(parts)


def layers(diagnoses: Sequence[Diagnosis], short: Sequence[str]) -> Html:
    """Return a table for each measure that layers have: a row for each checkpoint and layer."""
    parts = []
    for measure, variant in _measures(diagnoses):
        most = max(d.loops for d in diagnoses)
        rows = []
        for name, d in zip(short, diagnoses, strict=True):
            found = by_layer(d, measure, variant, ALL)
            for layer in sorted({layer for points in found.values() for layer in points}):
                points = [found.get(loop, {}).get(layer) for loop in range(1, most + 1)]
                rows.append((name, Number(layer), *map(_cell, points)))
        if rows:
            loops = [f"loop {loop}" for loop in range(1, most + 1)]
            parts.append(_folded(measure, variant, ("", "layer", *loops), rows))
    return join(parts)


def _folded(
    measure: str, variant: str, head: Sequence[str], rows: Sequence[Sequence[object]]
) -> Html:
    words = title(measure, variant)
    shown = table(head, rows, caption=words)
    return element("details", element("summary", words), shown)


def _measures(diagnoses: Sequence[Diagnosis]) -> list[tuple[str, str]]:
    """Return the measures and variants that were taken, in the order of the definitions."""
    taken = dict.fromkeys((s.measure, s.variant) for d in diagnoses for s in d.series)
    order = {name: i for i, name in enumerate(MEASURES)}
    return sorted(taken, key=lambda key: order.get(key[0], len(order)))
