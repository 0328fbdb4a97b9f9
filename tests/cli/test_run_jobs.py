"""`loopcoder runs` with what Slurm knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.jobs import ask_slurm, jobs_of, record_job
from loopcoder.cli import main as cli
from tests.cli.conftest import alone
from tests.cli.run_dirs import run_dir
from tests.slurm_commands import Commands

__all__ = ["alone"]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(tmp_path, monkeypatch)


def submitted(run: Path, config: Path, job: int, slurm: Commands) -> Path:
    """Write the folder of a job for a run, as `loopcoder launch slurm` does."""
    folder = run / f"launch-{job}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_bytes((config / "config.yaml").read_bytes())
    record_job(folder, "slurm", str(job))
    slurm.add(job, folder / "job.sh")
    return folder


def listed(capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, dict[str, Any]]:
    assert cli.main(["runs", "--json"]) == code
    return {Path(entry["run"]).name: entry for entry in json.loads(capsys.readouterr().out)}


def test_what_slurm_knows_of_runs(slurm: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    stopped = run_dir(Path("runs/stopped"), losses=7, saved=5)
    event = {"kind": "run_stopped", "step": 7, "why": "node2 is gone", "exit_code": 75}
    (stopped / "events.jsonl").write_text(json.dumps(event) + "\n")
    queued = run_dir(Path("runs/queued"), losses=7, saved=5)
    running = run_dir(Path("runs/running"))
    finished = run_dir(Path("runs/finished"), losses=10, saved=10)
    new, never = Path("runs/new"), Path("runs/never")
    for job, run in enumerate([stopped, queued, running, finished, new, never], 20):
        submitted(run, stopped, job, slurm)
    slurm.tell(20, "TIMEOUT", "node1", "TimeLimit")
    slurm.tell(21, "PENDING", reason="Resources")
    slurm.tell(22, "RUNNING", "node[1-2]")
    slurm.tell(23, "COMPLETED")
    slurm.tell(24, "PENDING", reason="Priority")
    slurm.tell(25, "FAILED", reason="NonZeroExitCode")
    for start, rank, code in ((0, 0, 75), (1, 1, 3)):
        (never / "launch-25" / f"exit_codes-25-{start}.{rank}").write_text(f"{code}\n")
    (never / "launch-25" / "slurm-25.out").write_text("x")
    found = listed(capsys)
    assert {name: entry["state"] for name, entry in found.items()} == {
        "stopped": "stopped",
        "queued": "queued",
        "running": "running",
        "finished": "finished",
        "new": "queued",
        "never": "never begun",
    }
    assert found["queued"]["saved_step"] == 5 and found["new"]["max_steps"] == 10
    assert slurm.asked.read_text().count("\n") == 1  # one call for all
    (job,) = found["running"]["jobs"]
    assert (job["id"], job["state"], job["nodes"]) == ("22", "RUNNING", "node[1-2]")
    assert found["never"]["jobs"][0]["exit_codes"] == {"1": 3}
    assert cli.main(["runs"]) == 0
    text = capsys.readouterr().out
    for line in (
        "ended: node2 is gone (exit code 75)\n  job 20: TIMEOUT (TimeLimit)",
        "job 21 waits in the queue (Resources)",
        "job 22 runs on node[1-2]",
        "job 24 waits in the queue (Priority)",
        "job 25: FAILED (NonZeroExitCode); exit codes 3; runs/never/launch-25/slurm-25.out",
    ):
        assert f"\n  {line}\n" in text
    assert "job 23" not in text and max(map(len, text.splitlines())) <= 100


def test_jobs_that_slurm_has_forgotten(slurm: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_dir(Path("runs/run"), losses=7, saved=5)
    folder = submitted(run, run, 20, slurm)
    submitted(Path("runs/other"), run, 21, slurm)
    with (folder / "jobs.jsonl").open("a") as file:
        file.write('{"scheduler": "sl')  # the disk was full
    slurm.tell(20, "RUNNING", "node1")
    slurm.tell(21, "RUNNING", "node2")
    slurm.forget()
    assert cli.main(["runs"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("not in the queue any more") == 2 and captured.err == ""
    assert "\n  stopped  " in captured.out and "\n  never begun  " in captured.out


def test_a_number_that_slurm_gave_to_another_job(slurm: Commands) -> None:
    run = run_dir(Path("run"))
    submitted(run, run, 20, slurm)
    slurm.add(20, Path("/elsewhere/launch-x/job.sh"), instead=True)
    (job,) = ask_slurm(jobs_of(run)).jobs
    assert not job.is_active


def test_a_slurm_that_is_silent_or_absent(
    slurm: Commands, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_dir(Path("runs/run"), losses=7, saved=5)
    submitted(run, run, 20, slurm)
    slurm.command("squeue", "exec sleep 1000")
    asked = ask_slurm(jobs_of(run), seconds=0.2)
    assert asked.silent == "no answer within 0.2 s" and not asked.jobs[0].is_active
    slurm.command("squeue", "echo 'squeue: error: no controller' >&2; exit 1")
    assert cli.main(["runs"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "squeue does not say what jobs do: squeue: error: no controller\n"
    assert "job 20: submitted 20" in captured.out and "stopped" in captured.out
    monkeypatch.setenv("PATH", str(run))
    assert cli.main(["runs"]) == 0
    assert capsys.readouterr() == (captured.out, "")


def test_one_missing_folder_hides_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "c"):
        run_dir(Path(name), losses=2)
    assert cli.main(["runs", "a", "b", "c"]) == 3
    captured = capsys.readouterr()
    assert "\na\n" in captured.out and "\nc\n" in captured.out
    assert "there is no" not in captured.out and captured.err.startswith("loopcoder: no folder b")
    assert cli.main(["runs", "a", "b", "--table", "t"]) == 3
    assert Path("t/sweep.md").exists() and "no folder b" in capsys.readouterr().err
