"""`loopcoder runs`: list run folders, or compare them in the table and plot of a sweep."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loopcoder.backends import detect
from loopcoder.cli.listing import Listed, cut, few, listing
from loopcoder.cli.options import parse_options
from loopcoder.cli.run_folders import RunFolder, differences, find_runs, labels, read_run
from loopcoder.cli.run_jobs import as_json as job_as_json
from loopcoder.cli.run_jobs import told, with_jobs
from loopcoder.config.identity import numbers
from loopcoder.config.schema import Config
from loopcoder.errors import EXIT_DONE, InputError
from loopcoder.metrics.goodput import account_of, read_marks
from loopcoder.metrics.sweep import report_sweep
from loopcoder.metrics.sweep_rows import SweptRun, row_of
from loopcoder.metrics.words import human
from loopcoder.plan.cost import flops_per_token
from loopcoder.storage.files import in_words

HELP = """\
List run folders: how far each run came, how good it is, why it ended, in what it differs.

usage: loopcoder runs [DIR...] [--json]
       loopcoder runs [DIR...] --table FOLDER

  loopcoder runs                        the runs in runs/, the newest last
  loopcoder runs runs/sweeps/HASH       a sweep's; a DIR is a run, a sweep, or a folder of them
  loopcoder runs A B --table compared   the table and the plot of a sweep, of any runs, named by
                                        their folders; the others are compared with the first

states:
  training      a process has the folder at this moment
  finished      it reached train.max_steps
  stopped       it has a checkpoint; the command that started it continues it
  never saved   it has none; that command starts it anew
  queued        a job of Slurm waits that trains it, and why it waits
  running       its job runs, and is not in the folder yet, or on a disk whose locks stay on a node
  never begun   a job was submitted, which is not in the queue any more, or not known here

A job's nodes, or how it ended, stand below its run, as far as squeue knows.

goodput is the share of a run's wall time since its first start that went into steps that count;
saved is the step of its last checkpoint.

  --json          one list of objects, with every differing field and sizes in bytes
  --table FOLDER  write sweep.md, sweep.json and sweep.png there; seeds of one config are one row"""


def run(argv: list[str]) -> int:
    """List runs; say in one line each which folders cannot be read."""
    operands, options = parse_options("runs", argv, flags=["--json"], values={"--table": "FOLDER"})
    if "--help" in options:
        print(HELP)
        return EXIT_DONE
    if options.keys() == {"--json", "--table"}:
        raise InputError.of(
            "loopcoder runs --json --table", "--table writes its own sweep.json", "one of them"
        )
    found = []
    run_dirs, problems = find_runs([Path(name).expanduser() for name in operands or ["runs"]])
    if problems and not run_dirs:
        raise InputError(problems)
    for run_dir in run_dirs:
        try:
            found.append(read_run(run_dir))
        except (InputError, OSError) as error:
            _unreadable(run_dir, error)
    if "--table" in options:
        _compare(found, Path(options["--table"]).expanduser())
    else:
        _list(with_jobs(found), as_json="--json" in options)
    if problems:
        raise InputError(problems)
    return EXIT_DONE


def _list(found: list[RunFolder], *, as_json: bool) -> None:
    found.sort(key=lambda entry: entry.written)
    differing = differences([entry.config for entry in found])
    if as_json:
        listed = [_plain(*pair) for pair in zip(found, differing, strict=True)]
        print(json.dumps(listed, indent=1))
    elif found:
        print(_listing(found, labels(differing)))


def _unreadable(run_dir: Path, error: Exception) -> None:
    print(f"left out: {run_dir}: {str(error).splitlines()[0]}", file=sys.stderr)


def _listing(found: Sequence[RunFolder], differing: Sequence[str]) -> str:
    header = ["state", "step", "tokens", "loss", "val/loss", "R"]
    header += ["goodput", "saved", "size", "last written"]
    entries = [
        Listed(
            str(entry.run_dir),
            [
                entry.state,
                f"{entry.step}/{entry.config.train.max_steps if entry.config else '?'}",
                "-" if entry.tokens is None else human(entry.tokens),
                _number(entry.loss, ".4f"),
                _number(entry.val_loss, ".4f"),
                str(entry.config.model.num_loops) if entry.config else "-",
                "-" if entry.goodput is None else f"{entry.goodput:.0%}",
                "-" if entry.saved_step is None else str(entry.saved_step),
                in_words(entry.bytes),
                f"{datetime.fromtimestamp(entry.written):%Y-%m-%d %H:%M}",
            ],
            text=label,
            notes=[*([f"ended: {entry.stopped}"] if entry.stopped else []), *told(entry)],
        )
        for entry, label in zip(found, differing, strict=True)
    ]
    return listing(header, entries)


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _plain(entry: RunFolder, differing: dict[str, Any]) -> dict[str, Any]:
    """Return a run as JSON can say it; what is not finite as metrics.jsonl has it."""
    config = entry.config
    losses = {"loss": entry.loss, "val/loss": entry.val_loss}
    return {
        "run": str(entry.run_dir),
        "state": entry.state,
        "step": entry.step,
        "max_steps": config.train.max_steps if config else None,
        "saved_step": entry.saved_step,
        "tokens": entry.tokens,
        **{k: str(v) if v and not math.isfinite(v) else v for k, v in losses.items()},
        "goodput": entry.goodput,
        "seconds": dict(account_of(read_marks(entry.run_dir)).seconds),
        "stopped": entry.stopped or None,
        "jobs": [job_as_json(job) for job in entry.jobs],
        "num_loops": config.model.num_loops if config else None,
        "differs": differing,
        "bytes": entry.bytes,
        "checkpoint_bytes": entry.checkpoint_bytes,
        "written": datetime.fromtimestamp(entry.written, UTC).isoformat(timespec="seconds"),
    }


def _compare(found: Sequence[RunFolder], folder: Path) -> None:
    """Write the tables and the plot of these runs as a sweep's."""
    readable = []
    for entry in found:
        if entry.config is None:
            print(f"left out: {entry.run_dir}: it has no config.yaml yet", file=sys.stderr)
            continue
        try:
            row_of(_run_of(entry, entry.config, "", None))
        except (InputError, OSError, LookupError, TypeError) as error:
            _unreadable(entry.run_dir, error)
        else:
            readable.append(entry)
    swept = _swept(readable)
    if not swept:
        raise InputError.of(
            "no run that can be compared", "a table needs metrics of one run or more",
            "loopcoder runs DIR shows what there is",
        )  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        report_sweep(swept, folder, plot=detect().has("matplotlib"), notes=_differing(readable))
    except OSError as error:
        raise InputError.of(
            f"cannot write to {folder}: {error.strerror or error}",
            "the tables and the plot are written there",
            "--table FOLDER that you may write to",
        ) from error
    print(f"\n{folder}")


def _differing(found: Sequence[RunFolder]) -> list[str]:
    """Return a list of the folders with what each of them differs in, if they differ."""
    named = labels(differences([entry.config for entry in found]))
    lines = [f"{e.run_dir}: {cut(n)}" for e, n in zip(found, named, strict=True) if n]
    return (
        ["\n".join(["The runs differ in:", "", *(f"- {line}" for line in lines)])] if lines else []
    )


def _swept(found: Sequence[RunFolder]) -> list[SweptRun]:
    """Name the runs by their folders; runs that differ in nothing but the seed are one point."""
    # the whole config decides; the same seed twice is no second sample
    points: dict[str, dict[int, RunFolder]] = {}
    for entry in found:
        assert entry.config is not None
        same = {k: v for k, v in numbers(entry.config).items() if k != "seed"}
        key, seed = json.dumps(same, sort_keys=True), entry.config.seed
        if seed in points.get(key, {}):
            key = str(entry.run_dir)
        points.setdefault(key, {})[seed] = entry
    runs = []
    for entry in found:
        members = next(p for p in points.values() if entry in p.values())
        point = few([str(member.run_dir) for member in members.values()])
        code = EXIT_DONE if entry.state == "finished" else None
        assert entry.config is not None
        runs.append(_run_of(entry, entry.config, point, code))
    return runs


def _run_of(entry: RunFolder, config: Config, point: str, code: int | None) -> SweptRun:
    return SweptRun(str(entry.run_dir), point, config, entry.run_dir, code, flops_per_token(config))
