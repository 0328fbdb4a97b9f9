"""Run the ranks of a stage: here, on a Slurm cluster or on a Ray cluster, through datatrove.

A task is a plain function of (rank, world_size). datatrove brings processes, job arrays and logs.
What it gets wrong stays outside: its completion markers know neither config nor input (those of
`store.Store` do), and one failing rank ends its siblings (here every rank is tried, and all faults
are told at once).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_pipeline.tasks.markers import disk_errors
from loopcoder.errors import InputError, LoopcoderError, Problem

POLL_S = 10.0
"""Seconds between looks at a Slurm job."""

Task = Callable[[int, int], None]
"""Work of one rank: (rank, world_size)."""


@dataclass(frozen=True)
class Executor:
    """Where the ranks of a stage run."""

    kind: Literal["local", "slurm", "ray"] = "local"
    """`local`: processes of this machine. `slurm`: a job array. `ray`: a Ray cluster."""
    workers: int = 0
    """Ranks at work at the same time; 0: one a core (local), or as many as there is room for."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of datatrove's executor: partition, time, mem_per_cpu_gb, ..."""


def run_ranks(
    task: Task, ranks: Sequence[int], world_size: int, executor: Executor, logs: Path
) -> None:
    """Run a task for some ranks of `world_size` and wait for all of them.

    Args:
        task: must be picklable; a rank that is run again must give the same result.
        logs: folder for datatrove's logs and the faults of ranks; on a cluster all nodes see it.

    Raises:
        InputError: of every rank that found fault with its input, all together.
        LoopcoderError: ranks failed for another reason; their tracebacks are in the message.
    """
    if not ranks:
        return
    faults = logs / "faults"
    shutil.rmtree(logs, ignore_errors=True)
    with disk_errors(logs):
        faults.mkdir(parents=True)
        (faults / _RESERVE).write_bytes(bytes(_RESERVE_BYTES))
    step = _Step(task, tuple(ranks), world_size, faults)
    if executor.kind == "local" and _workers(executor) == 1:
        for index in range(len(ranks)):
            step(None, index, len(ranks))
    else:
        runner = _datatrove(executor, step, len(ranks), logs)
        try:
            runner.run()
        except BrokenProcessPool:
            pass  # a worker was killed: its rank is among those that ended without a word
        except Exception:
            # a rank that could not even say what is wrong: what others say explains it
            _raise_faults(faults, len(ranks), lost_too=False)
            raise
        if executor.kind == "slurm":
            _wait_for_slurm(str(runner.job_id), faults, len(ranks))
    _raise_faults(faults, len(ranks))


def _wait_for_slurm(job: str, faults: Path, tasks: int) -> None:
    """Wait until all tasks of a job array have ended; datatrove only submits it."""
    gone = False
    while len(_ends(faults)) < tasks and not gone:
        time.sleep(POLL_S)
        queue = subprocess.run(
            ["squeue", "--noheader", "--jobs", job], capture_output=True, text=True, check=False
        )
        # one more look at the folder after the job has left the queue: file systems lag behind
        gone = not queue.stdout.strip() and "Socket timed out" not in queue.stderr
        if gone:
            time.sleep(POLL_S)


def _ends(faults: Path) -> list[Path]:
    """Return what the ranks left when they ended, well or not."""
    return [path for path in faults.iterdir() if path.suffix in (".json", ".ok")]


_RESERVE, _RESERVE_BYTES = "reserve", 1 << 14


class _Step:
    """What datatrove runs: it takes and yields no documents."""

    def __init__(self, task: Task, ranks: tuple[int, ...], world_size: int, faults: Path):
        self.task, self.ranks, self.world_size, self.faults = task, ranks, world_size, faults

    def __call__(self, _: Any, index: int = 0, __: int = 1) -> tuple[()]:
        rank, fault = self.ranks[index], None
        try:
            self.task(rank, self.world_size)
        except InputError as error:
            fault = {"rank": rank, "problems": [[p.fact, p.why, p.fix] for p in error.problems]}
        except Exception:
            fault = {"rank": rank, "traceback": traceback.format_exc()}
        end = "json" if fault else "ok"
        temporary = self.faults / f"{index:05d}.tmp"
        try:
            temporary.write_text(json.dumps(fault), encoding="utf-8")
        except OSError:  # on a full disk there is just the room that was kept for this
            (self.faults / _RESERVE).unlink(missing_ok=True)
            temporary.write_text(json.dumps(fault), encoding="utf-8")
        temporary.rename(self.faults / f"{index:05d}.{end}")
        return ()


def _workers(executor: Executor) -> int:
    return executor.workers or len(os.sched_getaffinity(0))


def _datatrove(executor: Executor, step: _Step, tasks: int, logs: Path) -> Any:
    common = {"pipeline": [step], "tasks": tasks, "logging_dir": str(logs), "skip_completed": False}
    try:
        if executor.kind == "local":
            from data_pipeline.tasks.local_executor import QuietExecutor

            return QuietExecutor(
                # one would be this process, whose memory would then be that of all stages
                workers=max(2, min(_workers(executor), tasks)),
                **common,
                **executor.options,
            )
        workers = executor.workers or -1
        if executor.kind == "slurm":
            from datatrove.executor import SlurmPipelineExecutor

            return SlurmPipelineExecutor(workers=workers, **common, **executor.options)
        from datatrove.executor import RayPipelineExecutor

        return RayPipelineExecutor(workers=workers, **common, **executor.options)
    except ImportError as error:
        package = "'.[data]'" if error.name == "datatrove" else str(error.name)
        raise InputError.of(
            f"data.build.executor.kind={executor.kind}: {error}",
            "it runs the stages of the data pipeline",
            f"pip install {package}",
        ) from error
    except TypeError as error:
        raise InputError.of(
            f"data.build.executor.options={executor.options}: {error}",
            f"they are arguments of datatrove's {executor.kind} executor",
            "data.build.executor.options={} and add what the message names",
        ) from error


def _raise_faults(faults: Path, tasks: int, *, lost_too: bool = True) -> None:
    found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(faults.glob("*.json"))]
    problems = {tuple(p): None for fault in found for p in fault.get("problems", [])}
    crashed = [fault for fault in found if "traceback" in fault]
    lost = tasks - len(_ends(faults)) if lost_too else 0
    if crashed or lost:
        texts = [f"rank {fault['rank']}:\n{fault['traceback']}" for fault in crashed]
        texts += [f"{lost} ranks ended without a word (killed, or out of memory)"] if lost else []
        raise LoopcoderError("\n".join(texts))
    if problems:
        raise InputError([Problem(*p) for p in problems])
