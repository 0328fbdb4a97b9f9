"""A job of Slurm that trains one run: its script, which starts it again where that helps."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path

from pydantic.dataclasses import dataclass

from launch.environment import check_settings
from launch.jobs import EXITS
from launch.torchrun import CONFIG_VARIABLE, HASH_VARIABLE, OVERRIDES_VARIABLE
from loopcoder.config.types import STRICT, NonNegativeInt, PositiveInt
from loopcoder.errors import (
    EXIT_BAD_INPUT,
    EXIT_NO_RETRY,
    EXIT_RETRY,
    EXIT_VARIABLE,
    InputError,
)

_OF_OTHER_LAUNCHERS = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"
_KILLS = 3
"""How often a job is started again after signals ended ranks, without a new checkpoint."""


@dataclass(frozen=True, config=STRICT)
class SlurmConfig:
    """What a job asks Slurm for."""

    nodes: PositiveInt = 1
    """Nodes."""
    gpus_per_node: NonNegativeInt = 8
    """GPUs of each node, with a process for each unless the run's parallel.nproc_per_node says
    otherwise; 0: nodes without GPUs."""
    cpus_per_task: PositiveInt | None = None
    """Processors of each process; null: the partition's default, which may be one, unless options
    has --exclusive."""
    time: str | None = None
    """Limit of one start, as sbatch reads it: minutes, or D-HH:MM:SS; null: the partition's."""
    partition: str | None = None
    """Partition; null: Slurm's default."""
    account: str | None = None
    """Account; null: the user's default."""
    options: list[str] = field(default_factory=list)
    """Other options of sbatch, as in 'options=["--qos=high"]'; --export=NONE or --export=NAME,NAME
    keeps the rest of this shell's environment out of the job."""
    signal_before_s: PositiveInt = 180
    """Seconds before the limit at which the run is asked to save and stop; Slurm may do it up to
    60 s earlier."""
    max_requeues: NonNegativeInt = 100
    """How often the job is started again by itself; where signals such as SIGKILL (for want of
    memory) and SIGSEGV end processes, 3 times without a new checkpoint."""
    setup: str = ""
    """Shell command on the first node before the processes start, such as `module load cuda`, or
    `export MASTER_ADDR=ADDRESS` where the first node's name does not resolve."""
    python: str = sys.executable
    """Interpreter, on all nodes."""


def job_script(
    job: SlurmConfig,
    *,
    name: str,
    tasks_per_node: int,
    run_dir: Path,
    folder: Path,
    code: Path,
    config: Path,
    config_sha256: str,
    asked: Sequence[str],
) -> str:
    """Return the script of a job, as sbatch takes it.

    Args:
        job: What it asks for.
        name: Of the job; of jobs with one name and user one runs at a time.
        tasks_per_node: Processes of each node.
        run_dir: Of the run.
        folder: Of its output.
        code: Copy of this program.
        config: The finished config.
        config_sha256: Of that file.
        asked: The overrides, for the record of the run.
    """
    options = {
        "job-name": name,
        "dependency": "singleton",
        "nodes": job.nodes,
        "ntasks-per-node": tasks_per_node,
        "cpus-per-task": job.cpus_per_task,
        "gpus-per-node": job.gpus_per_node or None,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "signal": f"USR1@{job.signal_before_s}",
        "output": f"{str(folder).replace('%', '%%')}/slurm-%j.out",
        "open-mode": "append",
        "requeue": "",
    }
    lines = [
        f"#SBATCH --{option}{f'={shlex.quote(str(value))}' if value != '' else ''}"
        for option, value in options.items()
        if value is not None
    ]
    lines += [f"#SBATCH {_in_quotes(option)}" for option in job.options]
    variables = {
        "PYTHONSAFEPATH": "1",
        CONFIG_VARIABLE: config,
        HASH_VARIABLE: config_sha256,
        OVERRIDES_VARIABLE: shlex.join(asked),
    }
    exports = [f"export {key}={shlex.quote(str(value))}" for key, value in variables.items()]
    return _SCRIPT.format(
        options="\n".join(lines),
        unset=_OF_OTHER_LAUNCHERS,
        code=shlex.quote(str(code)),
        exports="\n".join(exports),
        exit_variable=EXIT_VARIABLE,
        exit_file=shlex.quote(str(folder / EXITS)),
        setup=_SETUP.format(job.setup, code=EXIT_BAD_INPUT) if job.setup else "",
        python=shlex.quote(job.python),
        checkpoints=shlex.quote(str(run_dir / "checkpoints")),
        kills_file=shlex.quote(str(folder / "killed")),
        kills=_KILLS,
        no_retry=EXIT_NO_RETRY,
        final=f"{EXIT_NO_RETRY} {EXIT_BAD_INPUT}",
        retry=EXIT_RETRY,
        max_requeues=job.max_requeues,
    )


def _in_quotes(option: str) -> str:
    """Return an option whose value may have blanks as sbatch reads it."""
    name, equals, value = option.partition("=")
    return f"{name}={shlex.quote(value)}" if equals else option


def check_job(job: SlurmConfig) -> None:
    """Raise InputError for a secret in the script, and where Slurm would read something else than
    what was meant."""
    fix = "export {name}=... in the shell that submits, or setup='export {name}=$(cat FILE)'"
    if exposed := list(check_settings({"setup": [job.setup], "options": job.options}, fix)):
        raise InputError(exposed)
    seconds = None if job.time is None else _seconds(job.time)
    if job.time is not None and seconds is None:
        raise InputError.of(
            f"time={job.time}",
            "sbatch reads minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS",
            "time=1-00:00:00 for a day",
        )
    if seconds is not None and seconds <= job.signal_before_s:
        raise InputError.of(
            f"time={job.time} signal_before_s={job.signal_before_s}",
            "the run would be asked to stop as soon as it starts",
            "a longer time, or fewer seconds before its end",
        )
    if any("\n" in option for option in job.options):
        raise InputError.of("options with a line break", "each is a line of the script", "without")


def _seconds(time: str) -> int | None:
    """Return the seconds of a time of sbatch; None: it is none."""
    if (found := re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)) is None:
        return None
    days, first, second, third = (int(part or 0) for part in found.groups())
    if found[1] is not None:
        return ((days * 24 + first) * 60 + second) * 60 + third
    return (first * 60 + second) * 60 + third if found[4] is not None else first * 60 + second


_SETUP = """\
{{
{}
}} || {{ echo "loopcoder: setup= of this job ended with $?" >&2; exit {code}; }}"""

_SCRIPT = """\
#!/bin/bash
{options}

unset {unset}
export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}
{exports}
# of each start; every rank that ends with another code than 0 leaves it in a file of its own,
# {exit_variable}.RANK
export {exit_variable}={exit_file}-$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}
# srun does not take it from sbatch
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
{setup}

# the ranks see themselves that one of them is gone, and say which
srun --export=ALL --kill-on-bad-exit=0 {python} -m loopcoder train
code=$?
[ $code -eq 0 ] && exit 0
left=" $(ls -tr "${exit_variable}".* 2>/dev/null | xargs -r -d '\\n' cat | tr '\\n' ' ')"
for final in {final}; do
    case $left in *" $final "*) exit $final ;; esac
done
case $left in
    " 1 "*) exit 1 ;;  # a fault of the program came first
    *" {retry} "*) ;;
    *) [ $code -lt 128 ] && [ $code -ne {retry} ] && exit $code ;;  # else a signal ended it
esac
case $(scontrol show job "$SLURM_JOB_ID") in
    *JobState=CANCELLED* | *JobState=COMPLETING*) exit {retry} ;;  # Slurm ends it: it stays so
esac
if [ $code -ge 128 ]; then
    killed={kills_file}-$SLURM_JOB_ID  # a line for each time: what the newest checkpoint was
    newest="after $(ls -d {checkpoints}/step_????????/manifest.json 2>/dev/null | tail -n 1)"
    echo "$newest" >> "$killed"
    if [ "$(grep -cxF -e "$newest" "$killed")" -gt {kills} ]; then
        echo "loopcoder: killed {kills} times and once more, without a new checkpoint"
        echo "    fix: less memory per process, or other nodes; then submit the job again"
        exit {no_retry}
    fi
fi
if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {max_requeues} ]; then
    echo "loopcoder: ended with $code; job $SLURM_JOB_ID is started again"
    scontrol requeue "$SLURM_JOB_ID" && sleep 60  # Slurm ends this script meanwhile
fi
exit {retry}
"""
