"""What is submitted is what runs later, whatever is changed meanwhile."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import snapshot
from launch.frozen import handed_config
from launch.torchrun import CONFIG_VARIABLE, HASH_VARIABLE
from loopcoder.cli.main import main
from loopcoder.cli.run_folders import runs_below
from loopcoder.config.compose import compose, load_config
from loopcoder.errors import InputError
from loopcoder.origin import commit_of
from tests.cli.conftest import alone

__all__ = ["alone"]

JOB = ["launch", "slurm", "nodes=2", "gpus_per_node=0"]
RUN = ["train", "run_dir=run", "parallel.nproc_per_node=2", "train.micro_batch_size=1"]


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of one file instead of this one, which is copied in one test only."""
    source = tmp_path / "program.py"
    source.write_text("first\n")

    def files() -> Iterator[tuple[str, Path]]:
        yield "loopcoder/program.py", source

    monkeypatch.setattr(snapshot, "_files", files)
    return source


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for Slurm's command."""
    command = tmp_path / "bin" / "sbatch"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\necho Submitted batch job 7\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    return command


def submitted(capsys: pytest.CaptureFixture[str], *changed: str) -> Path:
    assert main([*JOB, *RUN, *changed]) == 0
    printed = capsys.readouterr().out
    assert "Submitted batch job 7" in printed
    return Path(printed.split()[-1])


def test_a_command_has_one_hash(
    sbatch: Path, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = submitted(capsys)
    assert submitted(capsys) == first
    assert submitted(capsys, f"seed={random.randrange(10**6)}") != first
    program.write_text("second\n")
    later = submitted(capsys)
    assert later != first and later.name.split("-")[2] == first.name.split("-")[2]
    code = [folder / "code" / "loopcoder" / "program.py" for folder in (first, later)]
    assert [path.read_text() for path in code] == ["first\n", "second\n"]


def test_what_is_submitted_is_finished_and_cannot_be_changed(
    sbatch: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = submitted(capsys, "seed=5")
    script = (folder / "job.sh").read_text()
    for name in (CONFIG_VARIABLE, HASH_VARIABLE):
        found = re.search(rf"export {name}=(\S+)", script)
        assert found
        monkeypatch.setenv(name, found[1])
    config = handed_config()
    assert config == load_config(folder / "config.yaml")
    assert config is not None and config.run_dir == str(tmp_path / "run")
    assert (config.seed, config.parallel.nproc_per_node) == (5, 2)
    assert config.precision.name == compose([]).precision.name == "auto"  # the nodes decide
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("seed: 5", "seed: 6"))
    with pytest.raises(InputError, match="the file was changed since"):
        handed_config()
    assert main(["train"]) == 3
    (folder / "config.yaml").unlink()
    with pytest.raises(InputError, match="submit the job again"):
        handed_config()


def test_a_dry_run_shows_the_job_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    job = ["launch", "slurm", "--dry-run", "nodes=3", "gpus_per_node=0", "time=1-12:00:00"]
    job += ["partition=big one", 'options=["--qos=high"]', "setup='module load cuda'"]
    run = [
        "train",
        "run_dir=my 100% run",
        "train.global_batch_size=24",
        "data.seq_length=64",
    ]
    assert main([*job, *run, "parallel.nproc_per_node=2"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    script = capsys.readouterr().out
    for line in (
        "#SBATCH --nodes=3",
        "#SBATCH --ntasks-per-node=2",
        "#SBATCH --time=1-12:00:00",
        "#SBATCH --partition='big one'",
        "#SBATCH --qos=high",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --signal=USR1@180",
        "module load cuda",
    ):
        assert f"\n{line}\n" in script
    assert "--gpus-per-node" not in script and "--cpus-per-task" not in script
    assert re.search(r"--output='.*/my 100%% run/launch-\S+/slurm-%j.out'\n", script)
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["launch", "slurm", "train", "run_dir=r", "parallel.tp=3"], "parallel.tp=3"),
        (["launch", "slurm", "nodes=0", "train"], "nodes=0"),
        (["launch", "slurm", "model=plt_1b", "train"], "model"),
        (["launch", "slurm", "nodes=2"], "loopcoder launch slurm nodes=2 train"),
        (["launch", "pbs", "train"], "slurm or kubernetes"),
        ([*JOB, *RUN], "--dry-run shows the job"),  # there is no sbatch
    ],
)
def test_what_could_not_start_is_not_submitted(
    command: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(command) == 3
    assert named in capsys.readouterr().err


def test_without_sbatch_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*JOB, *RUN]) == 3
    assert not (tmp_path / "run").exists()


def test_jobs_have_one_name_where_they_have_one_folder(
    sbatch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of jobs with one name one runs at a time."""
    names = []
    for run_dir in ("one/my 100% run", "two/my 100% run", "one/my 100% run"):
        assert main([*JOB, "cpus_per_task=3", *RUN, f"run_dir={run_dir}"]) == 0
        folder = Path(capsys.readouterr().out.split("are in ")[-1].strip())
        script = (folder / "job.sh").read_text()
        assert "\n#SBATCH --cpus-per-task=3\n" in script
        names += re.findall(r"--job-name=(my-100-run-\w{8})\n", script)
    assert names[0] == names[2] != names[1]


def test_the_folder_of_a_job_is_no_run(sbatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = submitted(capsys)
    assert folder.is_dir()
    assert list(runs_below(folder.parent)) == []


def test_two_submissions_at_once_make_one_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = snapshot._files

    def copied_meanwhile() -> Iterator[tuple[str, Path]]:
        yield from files()
        monkeypatch.setattr(snapshot, "_files", files)
        snapshot.copy_code(tmp_path, "code")

    monkeypatch.setattr(snapshot, "_files", copied_meanwhile)
    assert (snapshot.copy_code(tmp_path, "code") / "loopcoder" / "program.py").exists()


def test_what_slurm_does_not_take_is_told(sbatch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    assert main([*JOB, *RUN]) == 3
    assert "sbatch: error: invalid partition" in capsys.readouterr().err


def test_a_copy_runs_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    copy = snapshot.copy_code(tmp_path, "code")
    assert snapshot.copy_code(tmp_path, "code") == copy
    assert [path.name for path in tmp_path.glob(".code*")] == []
    show = "from loopcoder.config.compose import compose, conf_dir; compose([]); "
    show += "from loopcoder.origin import commit_of; import launch, data_pipeline; "
    show += "print(conf_dir()); print(launch.__file__); print(commit_of())"
    done = subprocess.run(
        [sys.executable, "-c", show],
        env=os.environ | {"PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    expected = [str(copy / "conf"), str(copy / "launch" / "__init__.py"), str(commit_of())]
    assert done.stdout.split() == expected
