"""Ranks of a stage run in processes; every one is tried, and all faults are told at once."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from data_pipeline.tasks import execute
from data_pipeline.tasks.execute import Executor, run_ranks
from loopcoder.errors import InputError, LoopcoderError


class Work:
    """A picklable task: leaves a file, or fails as its rank asks."""

    def __init__(self, folder: Path, faults: dict[int, str] | None = None):
        self.folder, self.faults = folder, faults or {}

    def __call__(self, rank: int, world_size: int) -> None:
        match self.faults.get(rank):
            case "input":
                raise InputError.of(f"file {rank} is bad", "why", "fix")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "bug":
                raise ZeroDivisionError("a bug")
            case _:
                (self.folder / f"{rank}-of-{world_size}").write_text(str(os.getpid()))


@pytest.mark.parametrize("workers", [1, 2])
def test_every_rank_runs_once(tmp_path: Path, workers: int) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run_ranks(Work(out), [0, 2, 3], 5, Executor(workers=workers), tmp_path / "logs")
    assert sorted(p.name for p in out.iterdir()) == ["0-of-5", "2-of-5", "3-of-5"]
    pids = {p.read_text() for p in out.iterdir()}
    assert (str(os.getpid()) in pids) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_one_bad_rank_stops_no_other(tmp_path: Path, workers: int) -> None:
    out = tmp_path / "out"
    out.mkdir()
    work = Work(out, {1: "input", 2: "input"})
    with pytest.raises(InputError) as error:
        run_ranks(work, range(4), 4, Executor(workers=workers), tmp_path / "logs")
    assert [p.fact for p in error.value.problems] == ["file 1 is bad", "file 2 is bad"]
    assert sorted(p.name for p in out.iterdir()) == ["0-of-4", "3-of-4"]
    run_ranks(Work(out), [1, 2], 4, Executor(workers=workers), tmp_path / "logs")
    assert len(list(out.iterdir())) == 4


def test_a_bug_comes_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(LoopcoderError, match=r"(?s)rank 1:.*ZeroDivisionError: a bug"):
        run_ranks(Work(tmp_path, {1: "bug"}), range(2), 2, Executor(workers=1), tmp_path / "logs")


def test_a_killed_worker_is_told(tmp_path: Path) -> None:
    with pytest.raises(LoopcoderError, match="ended without a word"):
        work = Work(tmp_path, {1: "killed"})
        run_ranks(work, range(3), 3, Executor(workers=2), tmp_path / "logs")


def test_no_ranks_are_no_work(tmp_path: Path) -> None:
    run_ranks(Work(tmp_path), [], 2, Executor(), tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_a_wrong_option_is_named(tmp_path: Path) -> None:
    executor = Executor(workers=2, options={"partitionn": "x"})
    with pytest.raises(InputError, match="partitionn"):
        run_ranks(Work(tmp_path), range(2), 2, executor, tmp_path / "logs")


SBATCH = """#!/bin/bash
# runs the array at once, as a cluster would some time later
script="${@: -1}"
array=$(grep -oP '^#SBATCH --array=0-\\K\\d+' "$script")
[ -n "$array" ] && for i in $(seq 0 "$array"); do
    SLURM_NODELIST=node1 SLURM_ARRAY_TASK_ID=$i bash "$script" > /dev/null 2>&1 || true
done
echo "Submitted batch job 7"
"""


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
    executor = Executor("slurm", options={"time": "1:00:00", "partition": "cpu"})
    run_ranks(Work(out), [1, 2], 3, executor, tmp_path / "logs")
    assert sorted(p.name for p in out.iterdir()) == ["1-of-3", "2-of-3"]
    with pytest.raises(InputError, match="file 0 is bad"):
        run_ranks(Work(out, {0: "input"}), [0], 3, executor, tmp_path / "logs")
    with pytest.raises(InputError, match=r"data\.build\.executor\.options=.*partition"):
        run_ranks(Work(out), [0], 3, Executor("slurm"), tmp_path / "logs")
