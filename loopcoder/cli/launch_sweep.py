"""`loopcoder launch SCHEDULER ... sweep ...`: a job for every point."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from launch.sweep.bases import Bases
from launch.sweep.jobs import PointJob, run_jobs
from launch.sweep.ledger import LEDGER_FILE, is_finished, last_exit
from launch.sweep.points import Point, points
from launch.sweep.run import refuse_other_runs
from launch.sweep.settings import SweepConfig
from loopcoder.backends import Backends
from loopcoder.cli.arguments import Arguments
from loopcoder.cli.handing_over import hand_over, show
from loopcoder.cli.schedulers import SCHEDULERS, refuse_without
from loopcoder.cli.submission import on_nodes
from loopcoder.cli.sweep import report, settings_of
from loopcoder.cli.sweep_state import Board
from loopcoder.config.schema import Config
from loopcoder.errors import EXIT_DONE, EXIT_RETRY, InputError


def run_sweep_jobs(
    name: str, job: Any, arguments: Arguments, here: Backends, *, is_dry: bool
) -> int:
    """Submit every point that is left, wait for all, and compare them.

    Args:
        name: Of the scheduler.
        job: What each job asks it for.
        arguments: Those behind `sweep`.
        is_dry: Only say what would be submitted.
    """
    scheduler = SCHEDULERS[name]
    settings, overrides = settings_of(arguments.overrides, arguments.config_dir)
    if settings.trials is not None:
        raise InputError.of(
            f"sweep.trials={settings.trials}",
            "a search asks for a point when another has ended; jobs are submitted all at once",
            "loopcoder sweep, in a job of its own if need be; or every combination as a job",
        )
    if settings.at_once is not None or settings.per_gpu != 1:
        raise InputError.of(
            f"sweep.at_once={settings.at_once} sweep.per_gpu={settings.per_gpu}",
            f"{name} decides which of its jobs run, and where",
            "neither of them; loopcoder sweep runs points side by side on one machine",
        )

    _refuse_phases(name, settings)
    start = None
    if settings.init_from is not None:
        start = Bases.of_folder(Path(settings.init_from).expanduser()).run_like

    def processes(config: Config, there: Backends) -> int:
        size: int = job.nodes * (config.parallel.nproc_per_node or job.gpus_per_node or 1)
        return size

    there = on_nodes(job.gpus_per_node, here)
    folder, found = points(
        overrides, arguments.config_dir, there, settings.match, processes=processes, start=start
    )
    ledger = folder / LEDGER_FILE
    refuse_other_runs([point for point in found if not is_finished(point, ledger)], ledger)
    jobs = [_job(name, job, point, arguments, here, is_dry=is_dry) for point in found]
    if is_dry:
        return EXIT_DONE
    refuse_without(name, scheduler)
    print(f"{len(jobs)} jobs in {folder}", flush=True)
    with Board(here) as board:
        standing = partial(scheduler.standing, job)
        run_jobs(jobs, ledger, standing, board.show, wait=settings.wait)
    if not settings.wait:
        return EXIT_DONE
    codes = [last_exit(point, ledger) for point in found]
    report(found, codes, folder, settings, here)
    # of what nobody has noted nobody knows that it is done
    return next((code or EXIT_RETRY for code in codes if code != EXIT_DONE), EXIT_DONE)


def _refuse_phases(scheduler: str, settings: SweepConfig) -> None:
    """Raise InputError for what comes before or after the points of a sweep."""
    before, tasks = settings.before, settings.tasks
    given, fix, mended = [], [], []
    if before is not None:
        given.append(f"sweep.before={before}")
        fix.append(f"loopcoder launch {scheduler} ... sweep experiment={before}")
        mended.append("sweep.init_from=ITS_FOLDER")
    if tasks is not None:
        given.append(f"sweep.tasks={tasks}")
        mended.append("sweep.tasks=null")
    fix.append(f"this with {' '.join(mended)}")
    if tasks is not None:
        fix.append(f"loopcoder evaluate checkpoint=RUN tasks={tasks}")
    if given:
        raise InputError.of(
            " ".join(given),
            "what comes before and after the points would wait for their jobs",
            ", then ".join(fix),
        )


def _job(
    scheduler_name: str,
    job: Any,
    point: Point,
    arguments: Arguments,
    here: Backends,
    *,
    is_dry: bool,
) -> PointJob:
    """Compose and check the job of a point."""
    scheduler, own = SCHEDULERS[scheduler_name], Arguments(point.overrides, arguments.config_dir)
    try:
        submitted, text = scheduler.job(job, own, here)
    except InputError as error:
        raise InputError(
            [replace(p, fact=f"[{point.label}] {p.fact}") for p in error.problems]
        ) from error
    name = scheduler.name(submitted.run_dir)
    if is_dry:
        show(scheduler, job, submitted, text)

    def submit() -> str:
        return hand_over(scheduler_name, scheduler, job, submitted, text, anew=True)

    placed = replace(point, run_dir=submitted.run_dir)
    return PointJob(placed, name, submitted.folder, submit)
