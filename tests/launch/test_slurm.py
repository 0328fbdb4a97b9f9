"""Jobs of a real Slurm: steps are told apart, and what stopped starts again where that helps."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.parts import third_of
from tests.slurm import Cluster, cannot_run, cluster
from tests.train.conftest import (  # noqa: F401
    SMALL,
    Start,
    documents,
    environment,
    finish,
    start,
)
from tests.train.test_resume import curve

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(cannot_run() is not None, reason=cannot_run() or ""),
]

STEPS = ["train.max_steps=100", "checkpoint.interval=20", "eval.interval=50"]
OF_SLURM = ["nodes=2", "gpus_per_node=0"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm") / "lab") as made:
        yield made


@pytest.fixture(scope="module")
def local(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The run of two processes without Slurm."""
    run_dir = tmp_path_factory.mktemp("local") / "run"
    finish(start(run_dir, "parallel.nproc_per_node=2", *STEPS))
    return run_dir


@pytest.fixture
def submit(
    slurm: Cluster,
    documents: Path,  # noqa: F811
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> Iterator[Callable[..., str]]:
    """Submit `loopcoder launch slurm` and return the job's number; what is left is cancelled."""
    jobs = []

    def run(run_dir: Path, *overrides: str, of_slurm: list[str] = OF_SLURM) -> str:
        command = [sys.executable, "-m", "loopcoder", "launch", "slurm", *of_slurm, "train", *SMALL]
        said = slurm.ask(
            *command,
            f"path={documents}",
            f"run_dir={run_dir}",
            *overrides,
            environ=environment | slurm.environment,
            folder=tmp_path,
        )
        found = re.search(r"Submitted batch job (\d+)", said)
        assert found, said
        jobs.append(found[1])
        return found[1]

    yield run
    for job in jobs:
        slurm.ask("scancel", "--full", job)


def until(condition: Callable[[], object], told: Callable[[], object]) -> None:
    end = time.monotonic() + 280
    while not condition():
        assert time.monotonic() < end, told()
        time.sleep(0.1)


def output(run_dir: Path) -> str:
    return "\n".join(path.read_text() for path in run_dir.glob("launch-*/slurm-*.out"))


def steps_done(run_dir: Path) -> int:
    with suppress(FileNotFoundError):
        return len((run_dir / "metrics.jsonl").read_bytes().splitlines())
    return 0


def ended(slurm: Cluster, job: str, state: str, run_dir: Path) -> dict[str, str]:
    """Wait for the end of a job and return what Slurm says of it."""
    ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    def told() -> str:
        return f"{slurm.job(job)}\n{output(run_dir)}"

    until(lambda: slurm.job(job).get("JobState") in ends, told)
    found = slurm.job(job)
    assert found["JobState"] == state, told()
    return found


def test_two_steps_at_once_on_two_nodes(
    slurm: Cluster,
    documents: Path,  # noqa: F811
    environment: dict[str, str],  # noqa: F811
    local: Path,
    tmp_path: Path,
) -> None:
    """Each has ranks, a place to meet and a port of its own; the names of the nodes do not
    resolve."""
    options = " ".join([*SMALL, *STEPS, f"path={documents}", "train.max_steps=4"])
    step = "srun --exact --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=1"
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=2 --output=out\n"
        + "".join(
            f"{step} {sys.executable} -m loopcoder train {options} run_dir={tmp_path / name} &\n"
            f"{name}=$!\n"
            for name in ("one", "two")
        )
        + "wait $one && wait $two\n"
    )
    said = slurm.ask(
        "sbatch", "--wait", str(script), environ=environment | slurm.environment, folder=tmp_path
    )
    printed = (tmp_path / "out").read_text()
    assert "Submitted batch job" in said and printed.count("done: 4 steps") == 2, printed
    assert curve(tmp_path / "one") == curve(tmp_path / "two")
    assert curve(tmp_path / "one")[0] == curve(local)[0] | {"lr": curve(tmp_path / "one")[0]["lr"]}


def test_the_shell_of_an_salloc_is_no_task(
    slurm: Cluster,
    documents: Path,  # noqa: F811
    environment: dict[str, str],  # noqa: F811
    local: Path,
    tmp_path: Path,
) -> None:
    """Its variables speak of four tasks, which nobody starts; and it hears Ctrl-C."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        environ = environment | slurm.environment | {"SHELL": "/bin/sh"}
        os.execvpe("salloc", ["salloc", "--nodes=2", "--ntasks=4"], environ)
    options = " ".join([*SMALL, f"path={documents}", f"run_dir={tmp_path / 'run'}"])
    command = f"{sys.executable} -m loopcoder train {options} train.max_steps=100000"
    os.write(terminal, f"echo $SLURM_NTASKS tasks; {command}; echo code $?; exit\n".encode())
    printed, asked, end = b"", False, time.monotonic() + 280
    with suppress(OSError):  # its end
        while time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                printed += os.read(terminal, 4096)
            if not asked and steps_done(tmp_path / "run"):
                asked = True
                os.write(terminal, b"\x03")
    os.close(terminal)
    os.waitpid(child, 0)
    assert b"4 tasks" in printed and asked and b"code 75" in printed, printed.decode()


def test_a_job_that_is_asked_to_stop_starts_again(
    slurm: Cluster, submit: Callable[..., str], local: Path, tmp_path: Path
) -> None:
    """On two nodes, whose names do not resolve; with the code as it was."""
    run_dir = tmp_path / "run"
    job = submit(run_dir, *STEPS)
    until(lambda: steps_done(run_dir) >= 21, lambda: output(run_dir))
    slurm.ask("scancel", "--signal=TERM", job)
    assert ended(slurm, job, "COMPLETED", run_dir)["Restarts"] == "1"
    assert curve(run_dir)[-1] == curve(local)[-1]
    assert f"job {job} is started again" in output(run_dir)
    assert "Traceback" not in output(run_dir)


def test_a_cancelled_job_stays_cancelled(
    slurm: Cluster, submit: Callable[..., str], tmp_path: Path
) -> None:
    """Its ranks save and end with 75; until then it is said where it runs."""
    run_dir = tmp_path / "run"
    job = submit(run_dir, *STEPS, "train.max_steps=100000")
    until(lambda: steps_done(run_dir) >= 5, lambda: output(run_dir))
    listed = slurm.ask(sys.executable, "-m", "loopcoder", "runs", str(run_dir))
    assert f"job {job} runs on node[1-2]" in listed, listed
    slurm.ask("scancel", job)
    until(lambda: slurm.ask("squeue", "-h", "-j", job) == "", lambda: slurm.job(job))
    found = slurm.job(job)
    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "0"), output(run_dir)


def test_a_job_whose_node_dies_starts_again(
    slurm: Cluster, submit: Callable[..., str], local: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    job = submit(run_dir, *STEPS)
    until(lambda: steps_done(run_dir) >= 21, lambda: output(run_dir))
    slurm.kill_node(2)
    until(lambda: slurm.job(job)["Restarts"] == "1", lambda: (slurm.job(job), output(run_dir)))
    slurm.start_node(2)
    ended(slurm, job, "COMPLETED", run_dir)
    assert curve(run_dir)[-1] == curve(local)[-1]


@pytest.mark.parametrize(
    ("codes", "state", "last"),
    third_of(
        [
            ("75 0", "COMPLETED", "0:0"),
            ("76", "FAILED", "76:0"),
            ("3", "FAILED", "3:0"),
            ("1", "FAILED", "1:0"),
            ("137 0", "COMPLETED", "0:0"),
            ("137 137 137 137", "FAILED", "76:0"),
        ]
    ),
)
def test_what_is_started_again(
    slurm: Cluster,
    submit: Callable[..., str],
    local: Path,
    tmp_path: Path,
    codes: str,
    state: str,
    last: str,
) -> None:
    """A program that ends with one code after the other, at each start."""
    program = tmp_path / "program"
    program.write_text(
        "#!/bin/bash\n"
        ': "${LOOPCODER_CONFIG:?}"\n'
        f"codes=({codes}); code=${{codes[$SLURM_RESTART_COUNT]}}\n"
        '[ "$code" = 137 ] && kill -9 $$\n'
        '[ "$code" = 0 ] || echo "$code" > "$LOOPCODER_EXIT_FILE.$SLURM_PROCID"\nexit $code\n'
    )
    program.chmod(0o755)
    run_dir = tmp_path / "run"
    # what the script exports comes through all the same
    job = submit(run_dir, of_slurm=[*OF_SLURM, f"python={program}", 'options=["--export=NONE"]'])
    found = ended(slurm, job, state, run_dir)
    assert found["ExitCode"] == last
    assert found["Restarts"] == str(len(codes.split()) - 1)


def test_a_sweep_is_submitted_once_and_again_where_it_failed(
    slurm: Cluster,
    documents: Path,  # noqa: F811
    environment: dict[str, str],  # noqa: F811
    local: Path,
    tmp_path: Path,
) -> None:
    """Who watched it first is killed; one of three points finds a file in its way."""
    folder = tmp_path / "sweep"
    in_the_way = folder / "01_seed=2" / "checkpoints"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("no folder")
    command = [sys.executable, "-m", "loopcoder", "launch", "slurm", "nodes=1", "gpus_per_node=0"]
    command += ["sweep", *SMALL, *STEPS, "seed=1,2,3", f"path={documents}", f"run_dir={folder}"]

    def watch() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            env=environment | slurm.environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    first = watch()
    until(lambda: steps_done(folder / "00_seed=1") >= 10, lambda: slurm.ask("squeue"))
    first.kill()
    first.communicate()
    said = finish(watch(), code=76)
    assert "seed=2: ended with 76" in said and "seed=1: Submitted" not in said
    in_the_way.unlink()
    said = finish(watch())
    assert said.count("done before") == 2 and said.count("Submitted batch job") == 1
    assert (folder / "sweep.json").exists()
    for run_dir in folder.glob("0*_seed=*"):
        assert steps_done(run_dir) == 100
        jobs = len(list(run_dir.glob("launch-*/slurm-*.out")))
        assert jobs > 1 if "seed=2" in run_dir.name else jobs == 1


def test_processes_that_were_not_asked_for(
    slurm: Cluster,
    documents: Path,  # noqa: F811
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "loopcoder", "train", *SMALL, f"path={documents}"]
    done = subprocess.run(
        ["srun", "--nodes=2", "--ntasks-per-node=2", *command, f"run_dir={tmp_path / 'run'}"],
        env=environment | slurm.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "parallel.nproc_per_node=1, and the launcher has started 2 here" in done.stderr
