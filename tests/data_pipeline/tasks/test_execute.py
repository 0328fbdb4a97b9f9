"""Tasks of a stage run in processes; every one is tried, and all faults are told at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_pipeline.tasks import execute
from data_pipeline.tasks.execute import run_tasks
from loopcoder.config.build import ExecutorConfig
from loopcoder.errors import EXIT_RETRY, InputError, LoopcoderError, counted


class Doing:
    """What a picklable task does: leaves a file, or fails as its index asks."""

    def __init__(self, folder: Path, faults: dict[int, str] | None = None):
        self.folder, self.faults = folder, faults or {}

    def __call__(self, task: int) -> None:
        match self.faults.get(task):
            case "input":
                raise InputError.of(f"file {task} is bad", "why", "fix")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "bug":
                raise ZeroDivisionError("a bug")
            case _:
                (self.folder / str(task)).write_text(str(os.getpid()))


def run(doing: Doing, tasks: Sequence[int], executor: ExecutorConfig, logs: Path) -> None:
    run_tasks(doing, tasks, executor, "count", logs)


def done(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_runs_once(tmp_path: Path, workers: int) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run(Doing(out), [0, 2, 3], ExecutorConfig(workers=workers), tmp_path / "logs")
    assert done(out) == ["0", "2", "3"]
    pids = {p.read_text() for p in out.iterdir()}
    assert (str(os.getpid()) in pids) == (workers == 1)


@pytest.mark.data_full
@pytest.mark.parametrize("workers", [1, 2])
def test_one_bad_task_stops_no_other(tmp_path: Path, workers: int) -> None:
    out = tmp_path / "out"
    out.mkdir()
    doing = Doing(out, {1: "input", 2: "input"})
    with pytest.raises(InputError) as error:
        run(doing, range(4), ExecutorConfig(workers=workers), tmp_path / "logs")
    assert [p.fact for p in error.value.problems] == ["file 1 is bad", "file 2 is bad"]
    assert done(out) == ["0", "3"]
    run(Doing(out), [1, 2], ExecutorConfig(workers=workers), tmp_path / "logs")
    assert len(done(out)) == 4


def test_a_bug_comes_with_its_traceback(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    with pytest.raises(LoopcoderError) as error:
        run(Doing(tmp_path, {7: "bug"}), [0, 7], ExecutorConfig(workers=1), logs)
    assert f"task 7 of stage count failed (logs in {logs}):" in str(error.value)
    assert "ZeroDivisionError: a bug" in str(error.value)


def test_a_killed_task_is_named(tmp_path: Path) -> None:
    """By its index in the stage, not its place among those that ran."""
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(LoopcoderError) as error:
        run(Doing(out, {203: "killed"}), [5, 17, 203], ExecutorConfig(workers=2), tmp_path / "logs")
    lost = sorted({"5", "17", "203"} - set(done(out)), key=int)
    assert "203" in lost  # the pool ends with the killed one; others may not have begun
    assert f"{counted(len(lost), 'task')} of stage count died without reporting an error" in str(
        error.value
    )
    assert f": {', '.join(lost)}; logs in {tmp_path / 'logs'}" in str(error.value)
    assert "fix: start the same command again" in str(error.value)
    assert error.value.exit_code == EXIT_RETRY  # as the message says


def test_only_some_of_many_killed_tasks_are_named(tmp_path: Path) -> None:
    problem = execute._lost(range(100, 1100), "read", tmp_path)
    assert problem.fact.startswith("1,000 tasks of stage read died")
    assert "100, 101," in problem.fact and "119 and 980 more; logs in" in problem.fact


def test_no_tasks_are_no_work(tmp_path: Path) -> None:
    run(Doing(tmp_path), [], ExecutorConfig(), tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_a_wrong_option_is_named(tmp_path: Path) -> None:
    executor = ExecutorConfig(workers=2, options={"partitionn": "x"})
    with pytest.raises(InputError, match="partitionn"):
        run(Doing(tmp_path), range(2), executor, tmp_path / "logs")


SBATCH = """#!/bin/bash
# runs the array at once, as a cluster would some time later
script="${@: -1}"
array=$(grep -oP '^#SBATCH --array=0-\\K\\d+' "$script")
[ -n "$array" ] && for i in $(seq 0 "$array"); do
    SLURM_NODELIST=node1 SLURM_ARRAY_TASK_ID=$i bash "$script" > /dev/null 2>&1 || true
done
echo "Submitted batch job 7"
"""


@pytest.mark.data_full
def test_slurm_jobs_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for sbatch, srun and squeue; the job script is datatrove's own."""
    tools = tmp_path / "bin"
    tools.mkdir()
    scripts = {
        "sbatch": SBATCH,
        "srun": '#!/bin/bash\nshift 3\nexec "$@"\n',
        "squeue": "#!/bin/bash",
        "scontrol": "#!/bin/bash\necho node1",
    }
    for name, script in scripts.items():
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setattr(execute, "POLL_S", 0.01)
    out = tmp_path / "out"
    out.mkdir()
    executor = ExecutorConfig("slurm", options={"time": "1:00:00", "partition": "cpu"})
    run(Doing(out), [1, 2], executor, tmp_path / "logs")
    assert done(out) == ["1", "2"]
    with pytest.raises(InputError, match="file 0 is bad"):
        run(Doing(out, {0: "input"}), [0], executor, tmp_path / "logs")
    with pytest.raises(LoopcoderError, match=r"1 task of stage count died .*: 4; logs in"):
        run(Doing(out, {4: "killed"}), [3, 4], executor, tmp_path / "logs")
    with pytest.raises(InputError, match=r"data\.build\.executor\.options=.*partition"):
        run(Doing(out), [0], ExecutorConfig("slurm"), tmp_path / "logs")


def test_slurm_without_slurm_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = ExecutorConfig("slurm", options={"time": "1:00:00", "partition": "cpu"})
    with pytest.raises(InputError, match=r"executor.kind=slurm(.|\n)*no sbatch(.|\n)*kind=local"):
        run_tasks(print, [0, 1], slurm, "stage", tmp_path / "logs")


def test_options_of_another_executor_are_named(tmp_path: Path) -> None:
    wrong = ExecutorConfig(workers=2, options={"partition": "cpu"})
    with pytest.raises(InputError, match=r"executor\.options=(.|\n)*partition"):
        run_tasks(print, [0, 1], wrong, "stage", tmp_path / "logs")


def test_ray_without_ray_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("data_pipeline.tasks.execute.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"executor.kind=ray(.|\n)*pip install '\.\[ray\]'"):
        run_tasks(print, [0, 1], ExecutorConfig(kind="ray"), "stage", tmp_path / "logs")
