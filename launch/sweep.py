"""Several runs from one command: expand, check all, run in turn, one table and one plot.

Every point has a folder of its own; what became of it is a line of ledger.jsonl. The same command
again skips the points that are done and continues the one that was interrupted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from hydra.core.override_parser.types import Override

from launch.process import run_forwarding
from loopcoder.backends import Backends, detect
from loopcoder.config.check import check
from loopcoder.config.compose import (
    compose,
    conf_dir,
    group_options,
    parse_overrides,
)
from loopcoder.config.identity import config_hash
from loopcoder.config.resolve import processes_to_start, resolve
from loopcoder.config.schema import Config
from loopcoder.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_RETRY, InputError, Problem
from loopcoder.metrics.writer import METRICS_FILE, merge_by_step, read_metrics


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    label: str
    """The swept values, as they were written."""
    overrides: list[str]
    """All overrides of the run, its run_dir included."""
    config: Config
    run_dir: Path


@dataclass(frozen=True)
class Row:
    """What the table says about a point; None where the run did not get that far."""

    point: str
    loops: int
    steps: int
    loss: float | None
    val: dict[str, float]
    """val/loss and val/loss/<domain>, by their names in metrics.jsonl."""
    tokens_per_s: float | None
    exit_code: int | None


def sweep(overrides: Sequence[str], config_dir: Path | None = None) -> int:
    """Run every combination of the swept values; return 0, or the exit code of a run that failed.

    Raises InputError with the problems of all points before the first one starts.
    """
    if "RANK" in os.environ:
        raise InputError.of(
            f"train -m with RANK={os.environ['RANK']}",
            "every process of a torchrun or srun would run the whole sweep",
            "loopcoder train -m ... without torchrun; each run starts its own processes",
        )
    sweep_dir, points = plan(overrides, config_dir, detect())
    sweep_dir.mkdir(parents=True, exist_ok=True)
    ledger = sweep_dir / "ledger.jsonl"
    print(f"{len(points)} runs in {sweep_dir}", flush=True)
    stopped = None
    for number, point in enumerate(points, 1):
        if is_finished(point, ledger):
            print(f"[{number}/{len(points)}] {point.label}: done before", flush=True)
            continue
        print(f"[{number}/{len(points)}] {point.label}", flush=True)
        code = _run(point, ledger, config_dir)
        if code in (EXIT_BAD_INPUT, EXIT_RETRY):
            stopped = code
            break
    rows = [row_of(point, ledger) for point in points]
    write_report(rows, points, sweep_dir)
    failed = [row.exit_code for row in rows if row.exit_code]
    return stopped or (failed[0] if failed else EXIT_DONE)


def plan(
    overrides: Sequence[str], config_dir: Path | None, backends: Backends
) -> tuple[Path, list[Point]]:
    """Expand overrides into points, composed and checked, and the folder that holds them."""
    problems: list[Problem] = []
    parsed = parse_overrides(overrides, problems)
    folders = [o for o in parsed if o.key_or_group == "run_dir" and not o.is_sweep_override()]
    swept = [o for o in parsed if o not in folders]
    dirs = [conf_dir()] if config_dir is None else [conf_dir(), config_dir]
    options = group_options(dirs)
    choices = [_choices(override, options, problems) for override in swept]
    if problems:
        raise InputError(problems)
    name = hashlib.sha256(json.dumps([list(overrides), str(config_dir)]).encode()).hexdigest()[:10]
    sweep_dir = Path(str(folders[-1].value())) if folders else Path("runs/sweeps") / name
    points = []
    for index, values in enumerate(itertools.product(*choices)):
        label = " ".join(v for v, o in zip(values, swept, strict=True) if o.is_sweep_override())
        folder = sweep_dir.expanduser() / f"{index:02d}_{_folder_name(label)}"
        try:
            config = resolve(compose(values, config_dir), backends)
            check(config, processes_to_start(config, backends), backends)
        except InputError as error:
            problems += [replace(p, fact=f"[{label}] {p.fact}") for p in error.problems]
            continue
        points.append(Point(label, [*values, f"run_dir={_quoted(str(folder))}"], config, folder))
    if problems:
        raise InputError(problems)
    return sweep_dir.expanduser(), points


class _GroupLister:
    """Tell Hydra's parser the presets of a group, for `model=glob(*)`."""

    def __init__(self, options: dict[str, list[str]]):
        self._options = options

    def get_group_options(self, group_name: str, results_filter: object = None) -> list[str]:
        return self._options.get(group_name, [])


def _choices(
    override: Override, options: dict[str, list[str]], problems: list[Problem]
) -> list[str]:
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    text = str(override.input_line)
    if not override.is_discrete_sweep():
        why = "a sweep runs every value, and an interval has no end of them"
        problems.append(Problem(text, why, f"{key}=range(1,4), or {key}=1,2,3"))
        return []
    override.config_loader = _GroupLister(options)  # type: ignore[assignment]
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if not values:
        problems.append(
            Problem(text, "it selects nothing", f"{key}={','.join(options.get(key, ['1', '2']))}")
        )
    return values


def _folder_name(label: str) -> str:
    """Shorten `model.num_loops=2 seed=1` to num_loops=2-seed=1."""
    return (
        re.sub(r"[^\w.=-]+", "-", re.sub(r"[^\s=]*\.(\w+=)", r"\1", label)).strip("-")[:80] or "run"
    )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def train_point(point: Point, config_dir: Path | None) -> int:
    """Train one point in a process of its own and return its exit code."""
    command = [sys.executable, "-m", "loopcoder", "train", *point.overrides]
    if config_dir is not None:
        command += ["--config-dir", str(config_dir)]
    code, signalled = run_forwarding(command, dict(os.environ), lambda pid: [psutil.Process(pid)])
    return EXIT_RETRY if signalled and code != EXIT_DONE else code


def _run(point: Point, ledger: Path, config_dir: Path | None) -> int:
    """Train one point and record what became of it."""
    started = time.time()
    code = train_point(point, config_dir)
    record = {
        "time_s": round(started, 3),
        "wall_s": round(time.time() - started, 3),
        "point": point.run_dir.name,
        "label": point.label,
        "config_hash": config_hash(point.config),
        "exit_code": code,
    }
    with ledger.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    return code


def _records(path: Path) -> list[dict[str, Any]]:
    """Read a jsonl file; a run that never started has none."""
    return read_metrics(path) if path.exists() else []


def _last_exit(point: Point, ledger: Path) -> int | None:
    wanted = (point.run_dir.name, config_hash(point.config))
    codes = [
        record["exit_code"]
        for record in _records(ledger)
        if (record["point"], record["config_hash"]) == wanted
    ]
    return codes[-1] if codes else None


def is_finished(point: Point, ledger: Path) -> bool:
    """Say whether this very config ended well by the ledger, and by its metrics at the last
    step."""
    steps = [line["step"] for line in _records(point.run_dir / METRICS_FILE)]
    reached = bool(steps) and steps[-1] == point.config.train.max_steps
    return reached and _last_exit(point, ledger) == EXIT_DONE


def row_of(point: Point, ledger: Path) -> Row:
    """Read a point's row of the table from its metrics and the ledger."""
    lines = merge_by_step(_records(point.run_dir / METRICS_FILE))
    # What is not finite is written as text, which float() reads.
    losses = [float(line["loss"]) for line in lines if "loss" in line]
    speeds = [float(line["tokens_per_s"]) for line in lines if "tokens_per_s" in line]
    val: dict[str, float] = {}
    for line in lines:
        val |= {k: float(v) for k, v in line.items() if re.fullmatch(r"val/loss(/[^/]+)?", k)}
    return Row(
        point=point.label,
        loops=point.config.model.num_loops,
        steps=lines[-1]["step"] if lines else 0,
        loss=losses[-1] if losses else None,
        val=val,
        tokens_per_s=statistics.median(speeds) if speeds else None,
        exit_code=_last_exit(point, ledger),
    )


def markdown(rows: Sequence[Row]) -> str:
    """Format the table of a sweep."""
    names = sorted({name for row in rows for name in row.val})
    header = ["point", "loops", "steps", "final loss", *names, "tokens/s", "exit"]
    body = [
        [
            row.point,
            str(row.loops),
            str(row.steps),
            _number(row.loss, ".4f"),
            *(_number(row.val.get(name), ".4f") for name in names),
            _number(row.tokens_per_s, ",.0f"),
            "-" if row.exit_code is None else str(row.exit_code),
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    lines = [header, ["-" * width for width in widths], *body]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def write_report(rows: Sequence[Row], points: Sequence[Point], sweep_dir: Path) -> None:
    """Print the table; write it as sweep.md and sweep.json, and the loss curves as sweep.png."""
    table = markdown(rows)
    print(table, flush=True)
    (sweep_dir / "sweep.md").write_text(table + "\n", encoding="utf-8")
    (sweep_dir / "sweep.json").write_text(
        json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8"
    )
    if any(row.val for row in rows) and detect().has("matplotlib"):
        from loopcoder.metrics.plots import plot_sweep

        plot_sweep([(p.label, p.run_dir) for p in points], sweep_dir / "sweep.png")
