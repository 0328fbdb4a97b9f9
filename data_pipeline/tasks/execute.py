"""Run the tasks of a stage: here, on a Slurm cluster or on a Ray cluster, through datatrove.

A task is a plain function of its index. datatrove brings processes, job arrays and logs. What it
gets wrong stays outside: its completion markers know neither config nor input (those of `work.Task`
do), and one failing task ends its siblings (here every task is tried, and all faults are told at
once).
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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from data_pipeline.tasks.work import disk_errors
from loopcoder.config.build import ExecutorConfig
from loopcoder.config.fields import as_override
from loopcoder.errors import DiskFull, InputError, LoopcoderError, Problem, ProcessLost, counted
from loopcoder.storage.files import write_json
from loopcoder.storage.process import use_short_paths_of_ray

POLL_S = 10.0
"""Seconds between looks at a Slurm job."""
_NAMED = 20
"""Tasks that an error names."""


def run_tasks(
    run: Callable[[int], None],
    tasks: Sequence[int],
    executor: ExecutorConfig,
    stage: str,
    logs: Path,
) -> None:
    """Run some tasks of a stage and wait for all of them.

    Args:
        run: Does one task; picklable, and done again it gives the same result.
        tasks: Their indices.
        executor: Where they run.
        stage: Name of the stage, for errors.
        logs: Folder for datatrove's logs and the faults of tasks; on a cluster all nodes see it.

    Raises:
        InputError: of every task that found fault with its input, all together.
        LoopcoderError: tasks failed for another reason; the message has their tracebacks and the
            indices of those that could not say anything.
    """
    if not tasks:
        return
    faults = logs / "faults"
    shutil.rmtree(logs, ignore_errors=True)
    with disk_errors(logs):
        faults.mkdir(parents=True)
        (faults / _RESERVE).write_bytes(bytes(_RESERVE_BYTES))
    step = _Step(run, tuple(tasks), faults)
    if executor.kind == "local" and _workers(executor) == 1:
        for place in range(len(tasks)):
            step(None, place, len(tasks))
    else:
        runner = _datatrove(executor, step, len(tasks), logs)
        try:
            runner.run()
        except BrokenProcessPool:
            pass  # a worker was killed: its task is among those that reported nothing
        except Exception:
            # a task that could not even say what is wrong: what others say explains it
            _raise_faults(step, stage, logs, lost_too=False)
            raise
        if executor.kind == "slurm":
            _wait_for_slurm(str(runner.job_id), faults, len(tasks))
    _raise_faults(step, stage, logs)


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


def _ends(faults: Path) -> set[int]:
    """Return the places of the tasks that have ended and told how."""
    return {int(path.stem) for path in faults.iterdir() if path.suffix in (".json", ".ok")}


_RESERVE, _RESERVE_BYTES = "reserve", 1 << 14


class _Step:
    """What datatrove runs: it takes and yields no documents."""

    def __init__(self, run: Callable[[int], None], tasks: tuple[int, ...], faults: Path):
        self.run, self.tasks, self.faults = run, tasks, faults

    def __call__(self, _: Any, place: int = 0, __: int = 1) -> tuple[()]:
        task, fault = self.tasks[place], None
        try:
            self.run(task)
        except InputError as error:
            fault = {"task": task, "problems": [[p.fact, p.why, p.fix] for p in error.problems]}
            fault["disk_full"] = isinstance(error, DiskFull)
        except Exception:
            fault = {"task": task, "traceback": traceback.format_exc()}
        path = self.faults / f"{place:05d}.{'json' if fault else 'ok'}"
        try:
            write_json(path, fault)
        except OSError:  # on a full disk there is just the room that was kept for this
            (self.faults / _RESERVE).unlink(missing_ok=True)
            write_json(path, fault)
        return ()


def _workers(executor: ExecutorConfig) -> int:
    return executor.workers or len(os.sched_getaffinity(0))


def check_executor(executor: ExecutorConfig) -> None:
    """Raise InputError if what runs the tasks is not installed."""
    if executor.kind == "ray" and find_spec("ray") is None:
        raise InputError.of(
            "data.build.executor.kind=ray",
            "the package ray is not installed",
            "pip install '.[ray]' in the folder of loopcoder, or data.build.executor.kind=local",
        )
    if executor.kind == "slurm" and shutil.which("sbatch") is None:
        raise InputError.of(
            "data.build.executor.kind=slurm",
            "there is no sbatch here, which submits the jobs",
            "the same command on a machine of the cluster, or data.build.executor.kind=local",
        )


def _datatrove(executor: ExecutorConfig, step: _Step, tasks: int, logs: Path) -> Any:
    check_executor(executor)
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

        use_short_paths_of_ray()
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
            f"data.build.executor.options={as_override(executor.options)}: {error}",
            f"they are arguments of datatrove's {executor.kind} executor",
            "data.build.executor.options={} and add what the message names",
        ) from error


def _raise_faults(step: _Step, stage: str, logs: Path, *, lost_too: bool = True) -> None:
    found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(step.faults.glob("*.json"))]
    problems = {tuple(p): None for fault in found for p in fault.get("problems", [])}
    crashed = [fault for fault in found if "traceback" in fault]
    lost = sorted(set(range(len(step.tasks))) - _ends(step.faults)) if lost_too else []
    texts = [
        f"task {fault['task']} of stage {stage} failed (logs in {logs}):\n{fault['traceback']}"
        for fault in crashed
    ]
    if lost:
        texts.append(str(_lost([step.tasks[place] for place in lost], stage, logs)))
    if texts:
        kind = LoopcoderError if crashed else ProcessLost
        raise kind("\n".join(texts))
    if problems:
        is_full = any(fault.get("disk_full") for fault in found)
        raise (DiskFull if is_full else InputError)([Problem(*p) for p in problems])


def _lost(tasks: Sequence[int], stage: str, logs: Path) -> Problem:
    """Return what to tell of tasks that ended without a report."""
    named = ", ".join(map(str, tasks[:_NAMED]))
    more = f" and {len(tasks) - _NAMED:,} more" if len(tasks) > _NAMED else ""
    return Problem(
        f"{counted(len(tasks), 'task')} of stage {stage} died without reporting an error "
        f"(killed or out of memory): {named}{more}; logs in {logs}",
        "a process that is killed cannot say why; the end of its log, or that of its machine "
        "(dmesg, sacct), may",
        "start the same command again: it continues with these tasks. If memory ran out, fewer at "
        "a time (data.build.executor.workers=N), or on a cluster more for each "
        "(data.build.executor.options={mem_per_cpu_gb:N})",
    )
