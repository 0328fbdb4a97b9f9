"""The points of a sweep as jobs of a scheduler, which go on without the process that submits them.

Nothing has to be kept alive. The same command finds by their names which jobs are queued or run,
by the points' folders which are done, and submits what is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from launch.jobs import jobs_in
from launch.sweep import ledger as ledgers
from launch.sweep.ledger import is_at_last_step, is_finished
from launch.sweep.points import Point
from launch.sweep.run import Watch
from loopcoder.errors import (
    EXIT_DONE,
    EXIT_RETRY,
    DiskFull,
    InputError,
    LoopcoderError,
    Problem,
)

_LOOK_EVERY_S = 5.0
_MISSED = 3
"""Looks in a row in which a job is not there before it counts as ended: schedulers restart."""
_CLOCKS_DIFFER_S = 1.0
"""At most, between nodes; a run takes longer from its submission to its end."""


@dataclass(frozen=True)
class PointJob:
    """A point as it is handed over."""

    point: Point
    name: str
    """By which the scheduler knows it, whoever has submitted it."""
    folder: Path
    """Of its config, code and output."""
    submit: Callable[[], str]
    """Hand it over; return what the scheduler says."""


class Interrupted(LoopcoderError):
    """Who watched was asked to stop; the jobs go on."""

    exit_code = EXIT_RETRY


def run_jobs(
    jobs: Sequence[PointJob],
    ledger: Path,
    standing: Callable[[], Mapping[str, str]],
    watch: Watch,
    *,
    wait: bool,
) -> None:
    """Submit the points that are neither done, queued nor running, and wait for all.

    Args:
        jobs: Of all points.
        ledger: Of the sweep.
        standing: Returns the state of every job that is queued or runs, by name.
        watch: Shows how far they are.
        wait: Until none stands; else return as soon as they are submitted.

    Raises:
        InputError: the scheduler does not take a job, or other settings have a point's place.
        Unreachable: the scheduler does not answer.
        DiskFull: it cannot be noted how one ended.
        Interrupted: by Ctrl-C; the jobs go on.
    """
    began_s, there = time.time(), standing()
    points = [job.point for job in jobs]
    done = {job.name for job in jobs if _ended_well(job, ledger)}
    _refuse_others(jobs, there)
    left: list[PointJob] = []
    for number, job in enumerate(jobs, 1):
        where = f"[{number}/{len(jobs)}] {job.point.label}"
        if job.name in there:
            print(f"{where}: job {job.name}, {there[job.name]}", flush=True)
        elif job.name in done:
            print(f"{where}: done before", flush=True)
            continue
        else:
            print(f"{where}: {job.submit()}", flush=True)
        left.append(job)
    if wait:
        try:
            _wait(left, points, ledger, standing, watch, began_s)
        except KeyboardInterrupt:
            raise Interrupted.of(
                "the sweep is no longer watched; its jobs go on",
                "they do not need this process",
                "the same command watches them again, and submits what has failed",
            ) from None


def _refuse_others(jobs: Sequence[PointJob], there: Mapping[str, str]) -> None:
    """Raise InputError for jobs of other settings that stand in the place of points."""
    problems = [
        Problem(
            f"[{job.point.label}] job {job.name} ({there[job.name]}) is of other settings",
            "a run has one job at a time, and this one would be taken for the point's",
            "run_dir=ANOTHER_FOLDER, or end it first (scancel, kubectl delete jobset)",
        )
        for job in jobs
        if job.name in there and not _folders(job)
    ]
    if problems:
        raise InputError(problems)


def _folders(job: PointJob) -> list[Path]:
    """Return the folders of the jobs of this very config, whichever code they run."""
    *_, sha256 = job.folder.name.split("-")
    return list(job.folder.parent.glob(f"launch-*-{sha256}"))


def _wait(
    left: list[PointJob],
    points: Sequence[Point],
    ledger: Path,
    standing: Callable[[], Mapping[str, str]],
    watch: Watch,
    began_s: float,
) -> None:
    missed = dict.fromkeys((job.name for job in left), 0)
    while left:
        time.sleep(_LOOK_EVERY_S)
        try:
            there = standing()
        except LoopcoderError as error:  # it may be starting again
            print(f"loopcoder: {str(error).splitlines()[0]}", flush=True)
            continue
        watch(points, {j.point.label: there.get(j.name, "ends") for j in left}, ledger)
        for job in list(left):
            missed[job.name] = 0 if job.name in there else missed[job.name] + 1
            if missed[job.name] >= _MISSED or (missed[job.name] and _reached_end(job)):
                left.remove(job)
                code = _exit_of(job)
                print(f"{job.point.label}: ended with {code}", flush=True)
                if not ledgers.note(ledger, job.point, began_s, time.time(), code):
                    raise DiskFull.of(
                        f"no room to note in {ledger} how {job.point.label} ended",
                        "the sweep knows by it which points are done; its jobs go on",
                        "free space there, then the same command again",
                    )


def _ended_well(job: PointJob, ledger: Path) -> bool:
    """Say whether a point is done, and note it if nobody saw it end."""
    if not is_finished(job.point, ledger) and _reached_end(job):
        now_s = time.time()
        ledgers.note(ledger, job.point, now_s, now_s, EXIT_DONE)
    return is_finished(job.point, ledger)


def _reached_end(job: PointJob) -> bool:
    """Say whether this very config came to its end since it was submitted."""
    configs = [folder / "config.yaml" for folder in _folders(job)]
    submitted = [path.stat().st_mtime for path in configs if path.exists()]
    records = ledgers.records(job.point.run_dir / "events.jsonl")
    ends = [r for r in records if r.get("kind") in ("run_started", "run_done")]
    if not ends or not submitted or ends[-1]["kind"] != "run_done":
        return False
    ended_s = datetime.fromisoformat(ends[-1]["time"]).timestamp()
    return ended_s >= min(submitted) - _CLOCKS_DIFFER_S


def _exit_of(job: PointJob) -> int:
    """Return the code with which the newest job of a point ended, as far as its ranks left one;
    else that of a run that may start again."""
    if _reached_end(job):
        return EXIT_DONE
    jobs = jobs_in(job.folder)
    if jobs and not jobs[-1].exits and is_at_last_step(job.point):
        return EXIT_DONE  # there was nothing left to train
    codes = list(jobs[-1].exits.values()) if jobs else []
    return next((code for code in codes if code != EXIT_RETRY), EXIT_RETRY)
