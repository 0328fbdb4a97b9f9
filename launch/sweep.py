"""Several runs from one command: expand, check all, run in turn.

Every point has a folder of its own; what became of it is a line of ledger.jsonl. The same command
again skips the points that are done and continues the one that was interrupted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from hydra.core.override_parser.types import Override

from launch.killed import kernel_kills, kill_named
from launch.process import child_environ, run_forwarding
from launch.torchrun import OVERRIDES_VARIABLE
from loopcoder.backends import Backends
from loopcoder.config.check import check
from loopcoder.config.compose import (
    compose,
    conf_dir,
    group_options,
    sweep_axes,
)
from loopcoder.config.identity import as_folder, config_hash
from loopcoder.config.overrides import parse_overrides, quoted
from loopcoder.config.resolve import processes_to_start, resolve
from loopcoder.config.schema import Config
from loopcoder.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_NO_RETRY,
    EXIT_RETRY,
    InputError,
    Problem,
    counted,
)
from loopcoder.plan.fit import Needs, check_run, needs
from loopcoder.storage.disk import is_disk_full
from loopcoder.storage.folders import make_folder

FIRST_VARIABLE = "LOOPCODER_FIRST_OF_SWEEP"
"""Run folder of the first point, for the others, so that all are trained on one corpus."""


_ENDS = {
    EXIT_BAD_INPUT: (
        "its message above says what is wrong, and the other points may have the same",
        "mend that, then start the same command again: what is done is skipped",
    ),
    EXIT_RETRY: (
        "it was asked to stop; nothing is lost",
        "the same command continues with what is left",
    ),
    EXIT_NO_RETRY: (
        "it met a fault of its surroundings, such as a full disk, which its message above names; "
        "the others would meet it too",
        "mend that, then the same command continues with what is left",
    ),
}
"""Why a sweep ends with the point that ended with a code, and what helps."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    label: str
    """The swept values, as they were written."""
    without_seed: str
    """The same without the seed, shared by the runs of several seeds; `seed=1,2` where nothing else
    is swept."""
    overrides: list[str]
    """All overrides of the run, its run_dir included."""
    config: Config
    names: tuple[str, ...]
    """Hashes by which the ledger knows its config: of what was asked for, and, as it was until
    2026-11-29, of what this machine made of it."""
    run_dir: Path


@dataclass(frozen=True)
class Sweep:
    """What became of a sweep."""

    folder: Path
    points: list[Point]
    exit_codes: list[int | None]
    """Of each point's last run; None where it has not ended yet."""
    code: int
    """Of the whole: 0, or that of a run that failed."""


def sweep(
    overrides: Sequence[str],
    config_dir: Path | None,
    backends: Backends,
    refuse: Callable[[Config], None] = lambda config: None,
) -> Sweep:
    """Run every combination of the swept values; a preset may name axes (`sweep_axes`).

    Args:
        overrides: Those of the command line.
        config_dir: Folder of the user's presets.
        backends: Of this machine.
        refuse: Called with every point that is not finished; raises InputError for one that would
            not start.

    Raises InputError with the problems of all points before the first one starts.
    """
    if "RANK" in os.environ:
        raise InputError.of(
            f"train -m with RANK={os.environ['RANK']}",
            "every process of a torchrun or srun would run the whole sweep",
            "loopcoder train -m ... without torchrun; each run starts its own processes",
        )
    folder, found = points(overrides, config_dir, backends)
    if several := next((p for p in found if p.config.parallel.nodes > 1), None):
        raise InputError.of(
            f"train -m with parallel.nodes={several.config.parallel.nodes}",
            "the nodes would each go through the sweep in their own time, and never meet",
            "parallel.nodes=1, or loopcoder train for each point",
        )
    ledger = folder / "ledger.jsonl"
    _refuse([point for point in found if not is_finished(point, ledger)], refuse)
    make_folder(folder, "run_dir")
    print(f"{counted(len(found), 'run')} in {folder}", flush=True)
    stopped = None
    for number, point in enumerate(found, 1):
        if is_finished(point, ledger):
            print(f"[{number}/{len(found)}] {point.label}: done before", flush=True)
            continue
        print(f"[{number}/{len(found)}] {point.label}", flush=True)
        kills = kernel_kills()
        rewinds, code = _rewinds(point), _run(point, ledger, config_dir, found[0].run_dir)
        while code == EXIT_RETRY and _rewinds(point) > rewinds:  # of faults.rewinds at most
            rewinds, code = _rewinds(point), _run(point, ledger, config_dir, found[0].run_dir)
        if named := kill_named(code, kills, partial(_needs, point, backends)):
            print(named, file=sys.stderr)
        if code in (EXIT_BAD_INPUT, EXIT_RETRY) or (code == EXIT_NO_RETRY and not _diverged(point)):
            stopped = code
            left = [p for p in found if not is_finished(p, ledger)]
            print(
                _stopped(code, f"[{number}/{len(found)}] {point.label}", found, left),
                file=sys.stderr,
            )
            break
    codes = [_last_exit(point, ledger) for point in found]
    failed = [code for code in codes if code]
    return Sweep(folder, found, codes, stopped or (failed[0] if failed else EXIT_DONE))


def _rewinds(point: Point) -> int:
    """Return how often a point has gone back, after which the same command goes on."""
    records = _records(point.run_dir / "events.jsonl")
    return sum(record.get("kind") == "run_rewound" for record in records)


def _diverged(point: Point) -> bool:
    """Say whether a point's last run ended so that another point may fare better."""
    kinds = [record.get("kind") for record in _records(point.run_dir / "events.jsonl")]
    of_runs = [k for k in kinds if k in ("run_started", "run_diverged", "run_rewound")]
    return of_runs[-1:] == ["run_diverged"]


def _stopped(code: int, which: str, found: Sequence[Point], left: Sequence[Point]) -> str:
    """Return what to say where a sweep ends before its last point."""
    why, fix = _ENDS[code]
    names = ", ".join(p.label for p in left[:5])
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    done = len(found) - len(left)
    fact = f"the sweep stops: {which} ended with {code}; {done} of {counted(len(found), 'run')} "
    fact += f"{'is' if done == 1 else 'are'} done, left: {names}{more}"
    return f"loopcoder: {Problem(fact, why, fix)}"


def _refuse(unfinished: Sequence[Point], refuse: Callable[[Config], None]) -> None:
    problems = []
    for point in unfinished:
        try:
            refuse(point.config)
        except InputError as error:
            problems += [replace(p, fact=f"[{point.label}] {p.fact}") for p in error.problems]
    if problems:
        raise InputError(problems)


def points(
    overrides: Sequence[str], config_dir: Path | None, backends: Backends
) -> tuple[Path, list[Point]]:
    """Expand overrides into points, composed and checked, and the folder that holds them."""
    problems: list[Problem] = []
    overrides = [*sweep_axes(overrides, config_dir), *overrides]
    # As Hydra's BasicSweeper: the last of a key counts, in the place of the first.
    parsed = list({o.get_key_element(): o for o in parse_overrides(overrides, problems)}.values())
    folders = [o for o in parsed if o.key_or_group == "run_dir" and not o.is_sweep_override()]
    swept = [o for o in parsed if o not in folders]
    dirs = [conf_dir()] if config_dir is None else [conf_dir(), config_dir]
    options = group_options(dirs)
    choices = [_choices(override, options, problems) for override in swept]
    if not problems and not any(o.is_sweep_override() for o in swept):
        problems.append(
            Problem(
                "-m, and no field has several values",
                "a sweep trains every combination of the values that are given with commas",
                "model.num_loops=1,2,3,4, or the same command without -m",
            )
        )
    only_seeds = " ".join(str(o.input_line) for o in swept if o.is_sweep_override())
    if problems:
        raise InputError(problems)
    sweep_dir = Path("runs/sweeps") / _folder_of(overrides, parsed, config_dir)
    if folders:
        sweep_dir = Path(str(folders[-1].value()))
    found = []
    for index, values in enumerate(itertools.product(*choices)):
        axes = [v for v, o in zip(values, swept, strict=True) if o.is_sweep_override()]
        label, unseeded = " ".join(axes), " ".join(v for v in axes if not v.startswith("seed="))
        folder = sweep_dir.expanduser() / f"{index:02d}_{_folder_name(label)}"
        run_overrides = [*values, f"run_dir={quoted(str(folder))}"]
        try:
            asked = compose(run_overrides, config_dir)
            if (store := asked.checkpoint.store) is not None:  # its points are runs of their own
                below = f"{store.rstrip('/')}/{folder.name}"
                run_overrides.append(f"checkpoint.store={quoted(below)}")
                asked = compose(run_overrides, config_dir)
            config = resolve(asked, backends)
            size = processes_to_start(config, backends)
            check(config, size, backends)
            check_run(config, size, backends)
        except InputError as error:
            problems += [replace(p, fact=f"[{label}] {p.fact}") for p in error.problems]
            continue
        names = (config_hash(asked), config_hash(config))
        found.append(Point(label, unseeded or only_seeds, run_overrides, config, names, folder))
    if problems:
        raise InputError(problems)
    return sweep_dir.expanduser(), found


def _folder_of(
    overrides: Sequence[str], parsed: Sequence[Override], config_dir: Path | None
) -> str:
    """Return the name of a sweep's folder: like a run's, of `name` and a hash."""
    rest = [o for o in overrides if not o.startswith("name=")]
    hashed = hashlib.sha256(json.dumps([rest, str(config_dir)]).encode()).hexdigest()[:10]
    names = [o for o in parsed if o.key_or_group == "name" and not o.is_sweep_override()]
    return f"{as_folder(str(names[-1].value()))}-{hashed}" if names else hashed


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
    short = re.sub(r"[^\w.=-]+", "-", re.sub(r"[^\s=]*\.(\w+=)", r"\1", label)).strip("-")
    return short.encode()[:80].decode(errors="ignore") or "run"


def train_point(point: Point, config_dir: Path | None, first: Path | None = None) -> int:
    """Train one point in a process of its own and return its exit code.

    Args:
        first: Run folder of the first point, whose corpus the others take if it fits.
    """
    command = [sys.executable, "-m", "loopcoder", "train", *point.overrides]
    if config_dir is not None:
        command += ["--config-dir", str(config_dir)]
    environ = {k: v for k, v in child_environ().items() if k != OVERRIDES_VARIABLE}
    environ |= {FIRST_VARIABLE: str(first)} if first else {}
    code, signalled = run_forwarding(command, environ, lambda pid: [psutil.Process(pid)])
    return EXIT_RETRY if signalled and code != EXIT_DONE else code


def _run(point: Point, ledger: Path, config_dir: Path | None, first: Path) -> int:
    """Train one point and record what became of it."""
    started = time.time()
    code = train_point(point, config_dir, first)
    record = {
        "time_s": round(started, 3),
        "wall_s": round(time.time() - started, 3),
        "point": point.run_dir.name,
        "label": point.label,
        "config_hash": point.names[0],
        "exit_code": code,
    }
    try:
        with ledger.open("ab+") as file:
            torn = file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write(b"\n" * bool(torn) + json.dumps(record).encode() + b"\n")
    except OSError as error:
        if not is_disk_full(error):
            raise
        print(f"loopcoder: no room to note in {ledger} that it ended", file=sys.stderr)
        return code or EXIT_NO_RETRY
    return code


def _needs(point: Point, backends: Backends) -> Needs:
    return needs(point.config, processes_to_start(point.config, backends), backends)


def _records(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, if it is there; a torn line, of a kill or a full disk, is left
    out."""
    records = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
        with suppress(ValueError):
            records.append(json.loads(line))
    return records


def _last_exit(point: Point, ledger: Path) -> int | None:
    codes = [
        record["exit_code"]
        for record in _records(ledger)
        if record["point"] == point.run_dir.name and record["config_hash"] in point.names
    ]
    return codes[-1] if codes else None


def is_finished(point: Point, ledger: Path) -> bool:
    """Say whether this very config ended well by the ledger, and by its metrics at the last
    step."""
    lines = _records(point.run_dir / "metrics.jsonl")
    reached = bool(lines) and lines[-1]["step"] == point.config.train.max_steps
    return reached and _last_exit(point, ledger) == EXIT_DONE
