"""Jobs that were submitted for a run: their numbers in its folder, and what Slurm knows of them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loopcoder.errors import recorded_exits

FOLDER = "launch-"
"""How the folder begins that has the config, code and output of a job."""
EXITS = "exit_codes"
"""How the files begin in which the ranks of a start leave their exit codes."""
_RECORD = "jobs.jsonl"
_ANSWERS_S = 5.0
_GONE = "GONE"
"""State of a job that Slurm has forgotten, some minutes after its end."""
_ENDED = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT", _GONE,
})  # fmt: skip
"""States of Slurm in which a job stays."""
_WAITS = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})


@dataclass(frozen=True)
class Job:
    """A submitted job, and what its scheduler says of it."""

    folder: Path
    """Of its config, code and output."""
    scheduler: str
    """slurm or kubernetes."""
    id: str
    """Slurm's number, or the name of the JobSet."""
    submitted: str
    """UTC, ISO 8601."""
    state: str | None = None
    """In the scheduler's word; None: it was not asked, or did not answer."""
    nodes: str = ""
    """On which it runs, in Slurm's notation."""
    reason: str = ""
    """Why it waits, or ended."""
    exits: dict[int, int] = field(default_factory=dict)
    """Exit codes that the ranks of its newest start left, by rank, the first to end first."""

    @property
    def waits(self) -> bool:
        return self.state in _WAITS

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs."""
        return self.state is not None and self.state not in _ENDED

    @property
    def output(self) -> Path | None:
        """What it printed, as soon as that exists."""
        path = self.folder / f"slurm-{self.id}.out"
        return path if path.exists() else None

    def __str__(self) -> str:
        name = f"job {self.id}"
        why = f" ({self.reason})" if self.reason not in ("", "None") else ""
        if self.waits:
            return f"{name} waits in the queue{why}"
        if self.is_active:
            where = f" on {self.nodes}" if self.nodes else ""
            return f"{name} runs{where}" if self.state == "RUNNING" else f"{name}: {self.state}"
        state = "not in the queue any more" if self.state == _GONE else self.state
        codes = dict.fromkeys(self.exits.values())
        left = f"; exit codes {', '.join(map(str, codes))}" if codes else ""
        see = f"; {self.output}" if self.output and self.state != "COMPLETED" else ""
        return f"{name}: {state or f'submitted {self.submitted}'}{why}{left}{see}"


def record_job(folder: Path, scheduler: str, job_id: str) -> None:
    """Add a job to those that were submitted with a folder."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    line = json.dumps({"scheduler": scheduler, "id": job_id, "submitted": now})
    with (folder / _RECORD).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def has_jobs(run_dir: Path) -> bool:
    """Say whether a job was submitted for the run of a folder."""
    return any(run_dir.glob(f"{FOLDER}*/{_RECORD}"))


def jobs_of(run_dir: Path) -> list[Job]:
    """Return the jobs of a run as far as its folder knows them, the newest last."""
    found = [job for folder in run_dir.glob(f"{FOLDER}*") for job in jobs_in(folder)]
    return sorted(found, key=lambda job: job.submitted)


def jobs_in(folder: Path) -> list[Job]:
    """Return the jobs that were submitted with a folder, the newest last."""
    with suppress(FileNotFoundError):
        lines = (folder / _RECORD).read_text(encoding="utf-8", errors="replace").splitlines()
        return [job for line in lines for job in _read(folder, line)]
    return []


def _read(folder: Path, line: str) -> Iterator[Job]:
    with suppress(ValueError, LookupError, TypeError):  # a line that a full disk tore
        content: dict[str, Any] = json.loads(line)
        scheduler, job_id = str(content["scheduler"]), str(content["id"])
        job = Job(folder, scheduler, job_id, str(content["submitted"]))
        yield replace(job, exits=_exits(job))


def _exits(job: Job) -> dict[int, int]:
    """Return the exit codes of the newest start that left any."""
    files = job.folder.glob(f"{EXITS}-{job.id}-*.*")
    starts = {int(found[1]) for f in files if (found := re.search(r"-(\d+)\.\d+$", f.name))}
    if not starts:
        return {}
    with suppress(OSError, ValueError):
        return recorded_exits(job.folder / f"{EXITS}-{job.id}-{max(starts)}")
    return {}


@dataclass(frozen=True)
class Asked:
    """Jobs with what their scheduler says, and why it said nothing, if so."""

    jobs: list[Job]
    silent: str = ""


def ask_slurm(jobs: Sequence[Job], seconds: float = _ANSWERS_S) -> Asked:
    """Return the jobs with what Slurm knows of them, by one call for all that are its own.

    Where there is no squeue nothing is asked.

    Args:
        seconds: Within which it answers.
    """
    ids = [job.id for job in jobs if job.scheduler == "slurm" and job.id.isdigit()]
    if not ids:
        return Asked(list(jobs))
    command = ["squeue", "--noheader", "--states=all", "--format=%i|%T|%N|%r|%o"]
    command.append(f"--jobs={','.join(ids)}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except FileNotFoundError:
        return Asked(list(jobs))
    except (OSError, subprocess.SubprocessError) as error:
        late = isinstance(error, subprocess.TimeoutExpired)
        return Asked(list(jobs), f"no answer within {seconds:g} s" if late else str(error))
    # of a single job that it has forgotten Slurm says so
    if done.returncode and "Invalid job id" not in done.stderr:
        return Asked(list(jobs), (done.stderr.strip() or str(done.returncode)).splitlines()[-1])
    known = dict(_known(done.stdout.splitlines()))
    return Asked([_told(job, known) if job.id in ids else job for job in jobs])


def _told(job: Job, known: Mapping[str, tuple[str, str, str, str]]) -> Job:
    state, nodes, reason, script = known.get(job.id, (_GONE, "", "", ""))
    if Path(script).parent.name != job.folder.name:  # numbers are given again one day
        state, nodes, reason = _GONE, "", ""
    return replace(job, state=state, nodes=nodes, reason=reason)


def _known(lines: Iterable[str]) -> Iterator[tuple[str, tuple[str, str, str, str]]]:
    for line in lines:
        match line.strip().split("|", 4):
            case [job_id, state, nodes, reason, script]:
                yield job_id, (state, nodes, reason, script)
