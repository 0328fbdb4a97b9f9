"""Runs with what their scheduler knows: which job each has, whether it waits, and where it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.jobs import Job, ask_slurm, jobs_of
from loopcoder.cli.arguments import say_aside
from loopcoder.cli.run_folders import RunFolder


def with_jobs(found: Sequence[RunFolder]) -> list[RunFolder]:
    """Return the runs with their jobs, the newest last, and with the state that follows.

    A scheduler that does not answer is said on stderr; one that is not there is not asked.
    """
    asked = ask_slurm([job for entry in found for job in jobs_of(entry.run_dir)])
    if asked.silent:
        say_aside(f"squeue does not say what jobs do: {asked.silent}")
    of_runs: dict[Path, list[Job]] = {}
    for job in asked.jobs:
        of_runs.setdefault(job.folder.parent, []).append(job)
    return [_with(entry, of_runs.get(entry.run_dir, [])) for entry in found]


def _with(entry: RunFolder, jobs: list[Job]) -> RunFolder:
    active = [job for job in jobs if job.is_active]
    state = entry.state
    if state != "training" and active:
        state = "queued" if all(job.waits for job in active) else "running"
    return replace(entry, state=state, jobs=jobs)


def told(entry: RunFolder) -> Iterator[str]:
    """Yield what a person needs to know of a run's jobs: those that wait or run, else, of a run
    that is not finished, the last."""
    active = [job for job in entry.jobs if job.is_active]
    ended = entry.jobs[-1:] if entry.state not in ("training", "finished") else []
    yield from map(str, active or ended)


def as_json(job: Job) -> dict[str, Any]:
    """Return a job as JSON can say it."""
    return {
        "scheduler": job.scheduler,
        "id": job.id,
        "state": job.state,
        "nodes": job.nodes or None,
        "reason": None if job.reason in ("", "None") else job.reason,
        "submitted": job.submitted,
        "exit_codes": job.exits,
        "folder": str(job.folder),
    }
