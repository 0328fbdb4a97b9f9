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
from tests.slurm_commands import Commands

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
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(tmp_path, monkeypatch)


def submitted(capsys: pytest.CaptureFixture[str], *changed: str) -> Path:
    assert main([*JOB, *RUN, *changed]) == 0
    printed = capsys.readouterr().out
    assert "Submitted batch job" in printed
    return Path(printed.split()[-1])


def test_a_command_has_one_hash(
    slurm: Commands, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = submitted(capsys)
    slurm.tell(7, "CANCELLED")
    assert submitted(capsys) == first
    assert submitted(capsys, f"seed={random.randrange(10**6)}") != first
    program.write_text("second\n")
    later = submitted(capsys)
    assert later != first and later.name.split("-")[2] == first.name.split("-")[2]
    code = [folder / "code" / "loopcoder" / "program.py" for folder in (first, later)]
    assert [path.read_text() for path in code] == ["first\n", "second\n"]


def test_what_is_submitted_is_finished_and_cannot_be_changed(
    slurm: Commands,
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
    slurm: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of jobs with one name one runs at a time."""
    names = []
    for job, run_dir in enumerate(["one/my 100% run", "two/my 100% run", "one/my 100% run"], 7):
        assert main([*JOB, "cpus_per_task=3", *RUN, f"run_dir={run_dir}"]) == 0
        slurm.tell(job, "COMPLETED")
        folder = Path(capsys.readouterr().out.split("are in ")[-1].strip())
        script = (folder / "job.sh").read_text()
        assert "\n#SBATCH --cpus-per-task=3\n" in script
        names += re.findall(r"--job-name=(my-100-run-\w{8})\n", script)
    assert names[0] == names[2] != names[1]


def test_a_job_is_a_run_that_has_not_begun(
    slurm: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = submitted(capsys).parent
    assert list(runs_below(run_dir)) == list(runs_below(run_dir.parent)) == [run_dir]


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


def test_what_slurm_does_not_take_leaves_nothing(
    slurm: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.command("sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    assert main([*JOB, *RUN]) == 3
    assert "sbatch: error: invalid partition" in capsys.readouterr().err
    assert not Path("run").exists()


def test_what_was_there_stays_where_a_job_is_not_taken(
    slurm: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = submitted(capsys)
    slurm.tell(7, "TIMEOUT")
    slurm.command("sbatch", "exit 1")
    assert main([*JOB, *RUN]) == 3
    assert (folder / "code").is_dir() and main([*JOB, *RUN, "seed=5"]) == 3
    assert list(folder.parent.iterdir()) == [folder]


def test_the_same_job_is_submitted_once(
    slurm: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = submitted(capsys)
    assert main([*JOB, *RUN]) == 3
    said = capsys.readouterr().err
    assert "job 7 waits in the queue (Priority), with this same config" in said
    assert "scancel 7" in said
    slurm.tell(7, "RUNNING", "node[1-2]")
    assert main([*JOB, *RUN]) == 3
    assert "job 7 runs on node[1-2], with this same config" in capsys.readouterr().err
    assert main([*JOB, *RUN, "seed=5"]) == 0  # another config waits for its end
    assert "job 7 runs on node[1-2], with another config" in capsys.readouterr().err
    slurm.command("squeue", "echo cannot be reached >&2; exit 1")
    assert main([*JOB, *RUN]) == 0
    assert "squeue does not say what jobs of this run do: cannot be" in capsys.readouterr().err
    slurm.forget()
    assert submitted(capsys) == folder
    assert capsys.readouterr().err == ""


def test_a_job_says_what_it_gets_of_the_environment(
    slurm: Commands, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = f"{random.getrandbits(100):x}1x"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("http_proxy", f"http://me:{secret}@proxy:8080")
    monkeypatch.setenv("FSSPEC_S3", f'{{"key": "id", "secret": "{secret}"}}')
    monkeypatch.setenv("LOADEDMODULES", "cuda/12.4:gcc/13")
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("EDITOR", "vi")
    assert main([*JOB[:2], "--dry-run", *JOB[2:], *RUN]) == 0
    printed = capsys.readouterr().out
    folder = submitted(capsys)
    text = (folder / "environment.txt").read_text()
    assert "".join(f"# {line}\n" for line in text.splitlines()) in printed
    groups = dict(line.split(": ") for line in text.replace("\n    ", " ").splitlines()[1:])
    names = {group: listed.split(", ") for group, listed in groups.items()}
    assert names["modules"] == ["cuda/12.4", "gcc/13"]
    assert names["secrets"] == ["FSSPEC_S3", "WANDB_API_KEY", "http_proxy"]
    assert "NCCL_DEBUG" in names["read by programs"] and "EDITOR" in names["others"]
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        assert secret not in path.read_text()
    assert secret not in printed
    for export, passed in (("NONE", set()), ("NCCL_DEBUG,A=5", {"NCCL_DEBUG", "A"})):
        options = f'options=["--export={export}"]'
        assert main([*JOB[:2], "--dry-run", *JOB[2:], options, *RUN]) == 0
        shown = capsys.readouterr().out.rpartition("# modules")[2]
        assert ("NCCL_DEBUG" in shown) == ("NCCL_DEBUG" in passed) and "WANDB" not in shown


@pytest.mark.parametrize(
    "setting",
    [
        "setup='export WANDB_API_KEY={}'",
        "setup=\"module load cuda; AWS_SECRET_ACCESS_KEY='{}' x\"",
        'options=["--export=ALL,HF_TOKEN={}"]',
    ],
)
def test_a_job_takes_no_secrets(
    setting: str, slurm: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = f"{random.getrandbits(60):x}1x"
    for mode in ([], ["--dry-run"]):
        assert main(["launch", "slurm", *mode, setting.format(secret), *RUN]) == 3
        captured = capsys.readouterr()
        assert secret not in captured.out + captured.err and "fix: export " in captured.err
    assert main(["launch", "slurm", "--dry-run", *JOB[2:], setting.format("$(cat f)"), *RUN]) == 0


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
