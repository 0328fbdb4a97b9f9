"""Folders of runs: where they are, what became of each, in what they differ."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launch.jobs import FOLDER as JOB_FOLDER
from launch.jobs import Job, has_jobs, jobs_of
from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.pinned import RECORD, read_record
from loopcoder.config.compose import load_config
from loopcoder.config.fields import as_override
from loopcoder.config.identity import numbers
from loopcoder.config.schema import Config
from loopcoder.errors import InputError, Problem
from loopcoder.metrics.goodput import TIME_FILE
from loopcoder.metrics.started import started_from
from loopcoder.metrics.tail import newest_event, newest_values
from loopcoder.metrics.writer import EVENTS_FILE, METRICS_FILE
from loopcoder.storage.files import parsing, size_of
from loopcoder.storage.lock import is_held

_DEPTH = 4
"""Folders below a given one in which runs are looked for: runs/sweeps/HASH/POINT is a sweep's."""
_MANY = 4
"""Differing fields above which a run's own are shown only where most runs have another value."""


_SHOWN = ("step", "tokens", "loss", "val/loss", "goodput")


@dataclass(frozen=True)
class RunFolder:
    """What a run's folder says about it; None where it does not say."""

    run_dir: Path
    state: str
    """training, finished, stopped, never saved or never begun; by its jobs queued or running."""
    config: Config | None
    """None: the run ended before it had written its config."""
    step: int
    """Optimizer steps of the newest line of metrics, or of the newest checkpoint."""
    saved_step: int | None
    """Step of the newest complete checkpoint."""
    tokens: int | None
    loss: float | None
    val_loss: float | None
    goodput: float | None
    """Share of its wall time that went into steps that count."""
    stopped: str
    """Why it ended last, if it is not finished; empty: that is not known."""
    bytes: int
    """Of the whole folder."""
    checkpoint_bytes: int
    """Of it, what is below checkpoints/."""
    written: float
    """When it was last written to, in seconds since 1970."""
    jobs: list[Job] = field(default_factory=list)
    """That were submitted for it, the newest last."""


def find_runs(folders: Sequence[Path]) -> tuple[list[Path], list[Problem]]:
    """Return the runs in these folders: each a run, a sweep's folder, or a folder of any of them.

    They come in the order of the folders, each once, with a problem for every folder that is not
    there or holds no run.
    """
    found: dict[Path, Path] = {}
    problems: list[Problem] = []
    for folder in folders:
        runs = list(runs_below(folder))
        found |= {path.resolve(): path for path in runs if path.resolve() not in found}
        if not runs:
            fact = f"there is no run in {folder}" if folder.is_dir() else f"no folder {folder}"
            why = "a run's folder has a config.yaml and a metrics.jsonl"
            fix = "loopcoder runs DIR, or loopcoder train, which writes to runs/"
            if folder.exists() and not folder.is_dir():
                fact = f"{folder} is a file"
                around = next((p for p in folder.parents if list(runs_below(p, 0))), None)
                fix = f"loopcoder runs {around}" if around else fix
            problems.append(Problem(fact, why, fix))
    return list(found.values()), problems


def runs_below(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Yield the folder itself if it is a run, else the runs in it, in the order of their names.

    A folder is one too where a job was submitted whose run has not begun.
    """
    try:
        entries = {entry.name: entry for entry in os.scandir(folder)}
    except OSError:
        return
    is_checkpoint = layout.STATE in entries
    is_run = bool(entries.keys() & {METRICS_FILE, layout.CONFIG, "checkpoints"})
    if not is_run and any(name.startswith(JOB_FOLDER) for name in entries):
        is_run = has_jobs(folder)
    if is_run and not is_checkpoint:
        yield folder
    elif depth and not is_checkpoint:
        for name in sorted(entries):
            if not name.startswith((".", JOB_FOLDER)) and _is_folder(entries[name]):
                yield from runs_below(folder / name, depth - 1)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where this user may not look
        return False


def read_run(run_dir: Path) -> RunFolder:
    """Read what a run's folder says, of its metrics only the end.

    Raises:
        InputError: its config is damaged.
        OSError: the folder cannot be read.
    """
    saved = layout.complete(run_dir / "checkpoints")
    config = _config_of(run_dir, saved)
    newest = newest_values(run_dir / METRICS_FILE, _SHOWN)
    saved_step = saved[-1].step if saved else None
    step = max(int(newest.get("step", 0)), saved_step or 0)
    if is_held(run_dir / ".lock"):
        state = "training"
    elif config is not None and step >= config.train.max_steps:
        state = "finished"
    elif saved:
        state = "stopped"
    else:
        has_begun = (run_dir / METRICS_FILE).exists() or (run_dir / EVENTS_FILE).exists()
        state = "never saved" if has_begun or not has_jobs(run_dir) else "never begun"
    files = (run_dir / name for name in (METRICS_FILE, "events.jsonl", layout.CONFIG))
    written = [path.stat().st_mtime for path in (run_dir, *files) if path.exists()]
    return RunFolder(
        run_dir=run_dir,
        state=state,
        config=config,
        step=step,
        saved_step=saved_step,
        tokens=int(newest["tokens"]) if "tokens" in newest else None,
        loss=newest.get("loss"),
        val_loss=newest.get("val/loss"),
        goodput=newest.get("goodput"),
        stopped=_why_stopped(run_dir) if state in ("stopped", "never saved") else "",
        bytes=size_of(run_dir),
        checkpoint_bytes=size_of(run_dir / "checkpoints"),
        written=max([*written, *(c.path.stat().st_mtime for c in saved[-1:])]),
    )


def _why_stopped(run_dir: Path) -> str:
    event = newest_event(run_dir / EVENTS_FILE, ("run_started", "run_stopped", "run_done")) or {}
    if event.get("kind") == "run_stopped":
        return f"{event.get('why')} (exit code {event.get('exit_code')})"
    # versions that kept no account of their time did not say why they stopped either
    was_killed = event.get("kind") == "run_started" and (run_dir / TIME_FILE).exists()
    return "killed, or its machine failed: it left no word" if was_killed else ""


def _config_of(run_dir: Path, saved: Sequence[layout.Checkpoint]) -> Config | None:
    path = run_dir / layout.CONFIG
    if not path.exists() and saved:
        path = saved[-1].path / layout.CONFIG
    if not path.exists():
        path = next((j.folder / layout.CONFIG for j in reversed(jobs_of(run_dir))), path)
    if not path.exists():
        return None
    config = load_config(path)
    origin = started_from(run_dir, config.checkpoint.init_from)
    return replace(config, checkpoint=replace(config.checkpoint, init_from=origin))


def corpus_of(run_dir: Path) -> str | None:
    """Return the fingerprint of the corpus that a run is trained on, None: it does not say.

    What is damaged is said on stderr.
    """
    try:
        found = trained_on(run_dir)
    except InputError as error:
        print(f"{run_dir}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return None if found is None else found[1]


def trained_on(folder: Path) -> tuple[str | None, str] | None:
    """Return place and fingerprint of the corpus that a run, or a checkpoint, is trained on.

    None: it does not say; the place, a folder or URL, is None where only the fingerprint is known.
    What is damaged is said on stderr, if the next file says it.

    Raises:
        InputError: all that says it is damaged.
    """
    saved = layout.complete(folder / "checkpoints") or layout.complete(folder)
    damaged: InputError | None = None
    for file in [
        folder / RECORD,
        folder / layout.STATE,
        *(c.path / layout.STATE for c in saved[-1:]),
    ]:
        try:
            found = read_record(folder) if file.name == RECORD else _by_state(file)
        except InputError as error:
            damaged = damaged or error
            continue
        if found is not None:
            if damaged is not None:
                print(f"warning: {str(damaged).splitlines()[0]}", file=sys.stderr)
            return found
    if damaged is not None:
        raise damaged
    return None


def _by_state(path: Path) -> tuple[str | None, str] | None:
    """Return what `trained_on` does by the state of a checkpoint; None: there is none."""
    if not path.exists():
        return None
    why = "it says which corpus a checkpoint was trained on, and was cut off or altered"
    with parsing(path, why, "another checkpoint, or the corpus itself"):
        content = json.loads(path.read_text(encoding="utf-8"))
        recorded, fingerprint = content.get("corpus_dir"), content["corpus"]
        if recorded is None and "tokenizer_path" in content:  # of format 1
            recorded = str(Path(content["tokenizer_path"]).parent)
        return str(recorded) if recorded else None, str(fingerprint)


def differences(configs: Sequence[Config | None]) -> list[dict[str, Any]]:
    """Return for each run the fields in which the runs differ, by dotted names, with its values.

    Fields of a section whose presets differ are left out where the preset says it already: where
    all runs of that preset have the same value.
    """
    fields = [{} if config is None else _told(numbers(config)) for config in configs]
    known = [own for own in fields if own]
    names = sorted({name for own in known for name in own})
    differing = [
        name
        for name in names
        if len({as_override(own.get(name)) for own in known}) > 1
        and not _follows_from_preset(name, known)
    ]
    return [{name: own.get(name) for name in differing} if own else {} for own in fields]


def _told(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields without the paths of sources that `data.path` says already."""
    sources, path = fields.get("data.build.sources"), fields.get("data.path")
    if not path or not sources:
        return fields
    rest = [{k: v for k, v in source.items() if (k, v) != ("path", path)} for source in sources]
    return fields | {"data.build.sources": rest}


def _follows_from_preset(name: str, known: Sequence[dict[str, Any]]) -> bool:
    """Say whether the preset of a field's section determines the field in these runs."""
    preset = f"{name.partition('.')[0]}.name"
    values: dict[str, set[str]] = {}
    for own in known:
        values.setdefault(str(own.get(preset)), set()).add(as_override(own.get(name)))
    return name != preset and all(len(found) == 1 for found in values.values())


def labels(differing: Sequence[dict[str, Any]], most: int = _MANY) -> list[str]:
    """Write what each run differs in as overrides; of many fields only those that are unusual."""
    many = max((len(own) for own in differing), default=0) > most
    usual = {
        name: Counter(as_override(own[name]) for own in differing if name in own).most_common(1)[0]
        for name in {name for own in differing for name in own}
    }
    found = []
    for own in differing:
        shown = {name: as_override(value) for name, value in own.items()}
        parts = [
            f"{name.removesuffix('.name') if name != 'name' else name}={value}"
            for name, value in shown.items()
            if not many or value != usual[name][0]
        ]
        more = [f"and {len(parts) - most} more"] if len(parts) > most else []
        found.append(" ".join([*parts[:most], *more]))
    return found
