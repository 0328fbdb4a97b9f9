"""What a diagnosis found, as it is written to JSON and read again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from loopcoder.errors import InputError
from loopcoder.storage.files import parsing, write_json

FORMAT = 2
"""Version of the file; another one is refused."""
ALL = "all"
"""The group of every token."""


@dataclass(frozen=True)
class Series:
    """One measure of one group of tokens, by loop or by loop and layer.

    `values`, `low`, `high` and `counts` have one entry for each of `loops`, and that is a list with
    one entry for each of `layers` where there are layers. None stands for what is not defined, as
    an alignment before the second loop; `low` and `high` are the bounds of a 95% interval.
    """

    measure: str
    """Its name: `step_size`, `alignment`, ... (docs/diagnostics.md)."""
    variant: str
    """Which of several definitions, as `normed` or `raw`; "" where there is one."""
    unit: str
    """`nats`, `tokens`, ...; "" for a number without one."""
    group: str
    """`all`, `domain/NAME` or `language/NAME`."""
    loops: list[int]
    """Loops, counted from 1."""
    layers: list[int] | None
    """Layers, counted from 0; None where a measure has none."""
    values: list[Any]
    low: list[Any]
    high: list[Any]
    counts: list[Any]
    """How many tokens, queries or sequences a value is the mean of."""


@dataclass(frozen=True)
class Exit:
    """What leaving the loops early would do, by one rule at one threshold."""

    rule: str
    """`confidence` or `kl`."""
    threshold: float
    mean_loops: float
    """Loops that a token takes, on average."""
    loss: float
    """Nats per token, read where the token leaves."""
    agreement: float
    """Share of tokens whose most likely next token is that of the last loop."""


@dataclass(frozen=True)
class Diagnosis:
    """All that was measured of one checkpoint."""

    name: str
    """How reports call it: the run's name, or what was asked for."""
    checkpoint: str
    step: int
    trained_tokens: int | None
    model: dict[str, Any]
    """Fields of the model as it was trained; `num_loops` is the R of training."""
    training: dict[str, Any]
    """Objective, optimizer, seed, fingerprint of the corpus and tokens of its run."""
    loops: int
    """Loops that were run: those of training, and more where it was asked for."""
    data: dict[str, Any]
    """Place, split, sequences, tokens, sequence length, seed of the subsets and their sizes."""
    made: dict[str, Any]
    """Commit and version of loopcoder, precision, device, seconds."""
    series: list[Series]
    exits: list[Exit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be measured, and why."""

    def groups(self) -> list[str]:
        """Return the groups that have series, `all` first."""
        names = dict.fromkeys(s.group for s in self.series)
        return sorted(names, key=lambda name: (name != ALL, name))


def write(path: Path, diagnosis: Diagnosis) -> None:
    """Write a diagnosis as JSON, whole or not at all."""
    write_json(path, {"format": FORMAT, **asdict(diagnosis)})


def read(paths: Sequence[Path]) -> list[Diagnosis]:
    """Read diagnoses.

    Raises:
        InputError: a file is not there, or not one of ours.
    """
    return [_read(path) for path in paths]


def _read(path: Path) -> Diagnosis:
    fix = "loopcoder diagnose checkpoint=DIR, which writes such a file"
    try:
        with parsing(path, "it is to be what loopcoder diagnose wrote", fix):
            fields = json.loads(path.read_text(encoding="utf-8"))
            if (found := fields.pop("format")) != FORMAT:
                raise ValueError(f"it has format {found}, this version reads {FORMAT}")
            diagnosis = TypeAdapter(Diagnosis).validate_python(fields)
            for series in diagnosis.series:
                _check_numbers(series)
            return diagnosis
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError.of(f"there is no file {path}", "diagnosis= names one", fix) from error


def _check_numbers(series: Series) -> None:
    """Raise ValueError unless there are numbers, or None, for all loops and layers."""
    for name in ("values", "low", "high", "counts"):
        rows = getattr(series, name)
        if series.layers is None:
            rows = [rows]
        elif len(rows) != len(series.loops) or not all(isinstance(row, list) for row in rows):
            raise ValueError(f"{series.measure} has other {name} than loops and layers")
        wanted = len(series.loops if series.layers is None else series.layers)
        for row in rows:
            odd = [x for x in row if x is not None and type(x) not in (int, float)]
            if odd or len(row) != wanted:
                raise ValueError(f"{series.measure} has other {name} than loops and layers")
