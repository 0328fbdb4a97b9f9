"""The table of diagnoses for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from loopcoder.diagnose.reading import by_loop, labels, trained_loops
from loopcoder.diagnose.results import Diagnosis

COLUMNS = 120
_SHOWN = {
    "loss": ("loss", ""),
    "rank": ("rank", ""),
    "step": ("step_size", "raw"),
    "align": ("alignment", "raw"),
    "offset": ("offset_cost", "raw"),
    "eff.rank": ("effective_rank", "normed"),
    "gate": ("gate", ""),
    "shift": ("output_shift", ""),
}
"""Heads of the columns, with their measures and variants."""
_LEGEND = (
    "loops are counted from 1, in metrics.jsonl from 0; loop*: beyond the loops of training;",
    "value ± half of its 95% interval, which needs two sequences of a domain; rank: median rank of",
    "the true token; align: of two steps; offset: cost of the shift; shift: KL of the prediction",
    "from that of the loop before; step, align, offset in the residual stream; loss, shift in nats",
)


def table(diagnoses: Sequence[Diagnosis]) -> str:
    """Return one row for each checkpoint and loop, below the checkpoint's name; as long as its
    numbers are of a usual size no line is wider than 120 columns."""
    blocks = [_rows(diagnosis) for diagnosis in diagnoses]
    head = ["loop", *_SHOWN]
    widths = [max(map(len, column)) for column in zip(head, *chain(*blocks), strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  " + "  ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True)).rstrip()

    lines = [line(head)]
    for name, rows in zip(labels(diagnoses, COLUMNS - 20), blocks, strict=True):
        lines += [name, *map(line, rows)]
    return "\n".join([*lines, "", *_LEGEND])


def _rows(diagnosis: Diagnosis) -> list[list[str]]:
    columns = [by_loop(diagnosis, *measure) for measure in _SHOWN.values()]
    rows = []
    for loop in range(1, diagnosis.loops + 1):
        star = "*" if loop > trained_loops(diagnosis) else " "
        points = [column.get(loop) for column in columns]
        shown = ["" if p is None else str(p).replace(" ± ", "±") for p in points]
        rows.append([f"{loop}{star}", *shown])
    return rows
