"""A job of Slurm that trains one run: its script, which starts it again where that helps."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path

from pydantic.dataclasses import dataclass

from launch.frozen import HASH_VARIABLE
from launch.torchrun import CONFIG_VARIABLE, OVERRIDES_VARIABLE
from loopcoder.config.types import STRICT, NonNegativeInt, PositiveInt
from loopcoder.errors import EXIT_BAD_INPUT, EXIT_NO_RETRY, EXIT_RETRY, EXIT_VARIABLE

_OF_OTHER_LAUNCHERS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)


@dataclass(frozen=True, config=STRICT)
class SlurmConfig:
    """What a job asks Slurm for."""

    nodes: PositiveInt = 1
    """Nodes."""
    gpus_per_node: NonNegativeInt = 8
    """GPUs of each node, with a process for each unless the run's parallel.nproc_per_node says
    otherwise; 0: nodes without GPUs."""
    time: str | None = None
    """Limit of one start, as sbatch reads it: minutes, or D-HH:MM:SS; null: the partition's."""
    partition: str | None = None
    """Partition; null: Slurm's default."""
    account: str | None = None
    """Account; null: the user's default."""
    options: list[str] = field(default_factory=list)
    """Other options of sbatch, as in 'options=["--qos=high"]'."""
    signal_before_s: PositiveInt = 180
    """Seconds before the limit at which the run is asked to save and stop; Slurm may do it up to
    60 s earlier."""
    max_requeues: NonNegativeInt = 100
    """How often the job is started again by itself."""
    setup: str = ""
    """Shell command on the first node before the processes start, such as `module load cuda`."""
    python: str = sys.executable
    """Interpreter, on all nodes."""


def job_script(
    job: SlurmConfig,
    *,
    name: str,
    tasks_per_node: int,
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
        f"#SBATCH --{option}{f'={_in_a_line(value)}' if value != '' else ''}"
        for option, value in options.items()
        if value is not None
    ]
    lines += [f"#SBATCH {option}" for option in job.options]
    variables = {
        "PYTHONSAFEPATH": "1",
        CONFIG_VARIABLE: config,
        HASH_VARIABLE: config_sha256,
        OVERRIDES_VARIABLE: shlex.join(asked),
    }
    exports = [f"export {key}={shlex.quote(str(value))}" for key, value in variables.items()]
    return _SCRIPT.format(
        options="\n".join(lines),
        unset=" ".join(_OF_OTHER_LAUNCHERS),
        code=shlex.quote(str(code)),
        exports="\n".join(exports),
        exit_variable=EXIT_VARIABLE,
        exit_file=shlex.quote(str(folder / "exit_codes")),
        setup=job.setup,
        python=shlex.quote(job.python),
        final=f"{EXIT_NO_RETRY} {EXIT_BAD_INPUT}",
        retry=EXIT_RETRY,
        max_requeues=job.max_requeues,
    )


def _in_a_line(value: object) -> str:
    """Quote for a line of #SBATCH, which is split as a shell's."""
    return shlex.quote(str(value))


_SCRIPT = """\
#!/bin/bash
{options}

unset {unset}
export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}
{exports}
# of each start; every rank that ends with another code than 0 leaves it in a file of its own,
# {exit_variable}.RANK
export {exit_variable}={exit_file}-$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}
{setup}

# the ranks see themselves that one of them is gone, and say which
srun --kill-on-bad-exit=0 {python} -m loopcoder train
code=$?
[ $code -eq 0 ] && exit 0
left=" $(ls -tr "${exit_variable}".* 2>/dev/null | xargs -r -d '\\n' cat | tr '\\n' ' ')"
for final in {final}; do
    case $left in *" $final "*) exit $final ;; esac
done
case $left in
    " 1 "*) exit 1 ;;  # a fault of the program came first
    *" {retry} "*) ;;
    *) [ $code -lt 128 ] && exit $code ;;  # else a signal ended it
esac
if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {max_requeues} ]; then
    echo "loopcoder: ended with $code; job $SLURM_JOB_ID is started again"
    scontrol requeue "$SLURM_JOB_ID" && sleep 60  # Slurm ends this script meanwhile
fi
exit {retry}
"""
