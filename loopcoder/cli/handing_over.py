"""Hand a job to its scheduler: once, and with no folder left behind where it is refused."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from typing import Any

from launch.environment import FILE as ENVIRONMENT
from launch.jobs import record_job
from loopcoder.cli.schedulers import Scheduler
from loopcoder.cli.submission import Submission
from loopcoder.errors import LoopcoderError
from loopcoder.storage.folders import folder_for
from loopcoder.storage.lock import hold

_LOCK = ".launch.lock"


def show(scheduler: Scheduler, job: Any, submitted: Submission, text: str) -> None:
    """Print what would be submitted, and what the job would get of the environment."""
    print(f"# {submitted.folder}/{scheduler.file}\n{text}\n# {submitted.folder}/{ENVIRONMENT}")
    print(textwrap.indent(scheduler.environment(job), "# "), end="")


def hand_over(
    name: str,
    scheduler: Scheduler,
    job: Any,
    submitted: Submission,
    text: str,
    *,
    anew: bool = False,
) -> str:
    """Write a job's folder and submit it; return what its scheduler says.

    Two submissions to one run wait for each other. A folder that was not there before goes again
    where the scheduler does not take the job.

    Args:
        name: Of the scheduler.
        job: What it is asked for.
        text: What it reads.
        anew: What is left of a job of this name that has ended is removed; else it is refused.

    Raises:
        InputError: this same job waits or runs already, or is refused.
    """
    run_dir, folder = submitted.run_dir, submitted.folder
    files = {scheduler.file: text, ENVIRONMENT: scheduler.environment(job)}
    with folder_for(run_dir, "run_dir"):
        lock = run_dir / _LOCK
        with hold(lock, lambda _: None, needed=False):
            try:
                if anew:
                    scheduler.clear(job, scheduler.name(run_dir))
                scheduler.refuse_second(job, submitted)
                is_new = not folder.exists()
                try:
                    submitted.write(files)
                    said = scheduler.hand_over(folder / scheduler.file)
                except LoopcoderError:
                    if is_new and not _may_stand(scheduler, job, run_dir):
                        shutil.rmtree(folder, ignore_errors=True)
                    raise
                if (job_id := scheduler.known_by(said, run_dir)) is not None:
                    record_job(folder, name, job_id)
            finally:
                lock.unlink(missing_ok=True)
    return said


def _may_stand(scheduler: Scheduler, job: Any, run_dir: Path) -> bool:
    """Say whether a job may have been taken all the same: its answer may be what was lost."""
    try:
        return scheduler.name(run_dir) in scheduler.standing(job)
    except LoopcoderError:
        return True
