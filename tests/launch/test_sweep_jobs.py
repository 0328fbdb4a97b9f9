"""A sweep as jobs of a scheduler: each submitted once, and again where it failed."""

from __future__ import annotations

import json
import os
import random
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from launch import snapshot
from launch.jobs import jobs_in, record_job
from launch.sweep import jobs as module
from launch.sweep.jobs import Interrupted, PointJob, run_jobs
from launch.sweep.ledger import LEDGER_FILE, is_finished, last_exit
from launch.sweep.points import points
from loopcoder.backends import Backends
from loopcoder.cli.main import main
from loopcoder.errors import InputError


class Cluster:
    """Stands for a scheduler and for the nodes on which its jobs run."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        overrides = ["seed=1,2,3", "train.max_steps=4", f"run_dir={folder}"]
        _, self.points = points(overrides, None, Backends())
        self.ledger = folder / LEDGER_FILE
        self.queue: dict[str, str] = {}
        self.submitted: list[str] = []
        self.codes: dict[str, int] = {}
        """How jobs end, by label; others well."""
        self.looks = 0
        self.jobs = [
            PointJob(p, f"job-{p.label}", p.run_dir / f"launch-code{n}-{n}sha", self._submit(n))
            for n, p in enumerate(self.points)
        ]
        monkeypatch.setattr(module, "_LOOK_EVERY_S", 0)

    def _submit(self, number: int):
        def submit() -> str:
            job = self.jobs[number]
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / "config.yaml").write_text("config")
            self.queue[job.name] = "pending"
            self.submitted.append(job.point.label)
            record_job(job.folder, "slurm", str(len(self.submitted)))
            return "Submitted"

        return submit

    def end(self, job: PointJob) -> None:
        """Let a job end."""
        code, steps = self.codes.get(job.point.label, 0), job.point.config.train.max_steps
        del self.queue[job.name]
        lines = [{"step": step, "loss": 2.0} for step in range(1, steps + 1 - bool(code))]
        kinds = ["run_started"] if code else ["run_started", "run_done"]
        self._append(job.point.run_dir / "metrics.jsonl", lines)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        events = [{"time": now, "kind": kind, "step": steps} for kind in kinds]
        self._append(job.point.run_dir / "events.jsonl", events)
        if code:
            number = jobs_in(job.folder)[-1].id
            (job.folder / f"exit_codes-{number}-0.0").write_text(f"{code}\n")
            (job.folder / f"exit_codes-{number}-0.1").write_text("75\n")

    def _append(self, path: Path, lines: list[dict[str, object]]) -> None:
        with path.open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def standing(self) -> dict[str, str]:
        self.looks += 1
        for job in self.jobs if self.looks > 1 else []:
            if job.name in self.queue and random.random() < 0.4:
                self.end(job)
        return dict(self.queue)

    def run(self, **options: object) -> None:
        self.looks = 0
        options = {"standing": self.standing, "wait": True, "watch": lambda *_: None} | options
        run_jobs(self.jobs, self.ledger, **options)  # type: ignore[arg-type]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path / "sweep", monkeypatch)


def test_what_failed_is_submitted_again_and_nothing_else(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = random.choice(cluster.points).label
    cluster.codes = {failed: random.choice([1, 3, 76])}
    cluster.run()
    assert sorted(cluster.submitted) == ["seed=1", "seed=2", "seed=3"]
    assert f"{failed}: ended with {cluster.codes[failed]}" in capsys.readouterr().out
    codes = {point.label: last_exit(point, cluster.ledger) for point in cluster.points}
    assert codes == {"seed=1": 0, "seed=2": 0, "seed=3": 0} | cluster.codes
    cluster.codes, cluster.submitted = {}, []
    cluster.run()
    assert cluster.submitted == [failed]
    assert all(is_finished(point, cluster.ledger) for point in cluster.points)


def test_jobs_go_on_without_the_process_that_submitted_them(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """One ends unseen, others run: none is submitted twice."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="its jobs go on"):
        cluster.run(watch=interrupted, standing=lambda: dict(cluster.queue))
    assert len(cluster.queue) == 3
    cluster.end(unseen := random.choice(cluster.jobs))
    capsys.readouterr()
    cluster.run()
    printed = capsys.readouterr().out
    assert f"{unseen.point.label}: done before" in printed
    assert printed.count(", pending") == 2
    assert len(cluster.submitted) == 3
    assert all(is_finished(point, cluster.ledger) for point in cluster.points)


def test_a_job_of_other_settings_is_not_taken_for_the_points(cluster: Cluster) -> None:
    """It has the same name, which is its folder's."""
    other = random.choice(cluster.jobs)
    cluster.queue[other.name] = "pending"
    with pytest.raises(InputError, match=f"{other.name} .pending. is of other settings"):
        cluster.run()
    assert not cluster.submitted


def test_a_run_that_ended_before_it_was_submitted_does_not_count(cluster: Cluster) -> None:
    """As where another config was trained in its folder."""
    job = cluster.jobs[1]
    job.point.run_dir.mkdir(parents=True)
    cluster.queue[job.name] = "runs"
    (job.folder).mkdir(parents=True)
    cluster.end(job)
    (job.folder / "config.yaml").write_text("config")
    later = time.time() + 5
    os.utime(job.folder / "config.yaml", (later, later))
    cluster.run(wait=False)
    assert cluster.submitted == ["seed=1", "seed=2", "seed=3"]


def test_lines_that_are_no_records_are_left_out(cluster: Cluster) -> None:
    cluster.run()
    bad = ["[3]\n", "\0\0\n", "{\n", "7\n", '"step"\n', '{"step": ']
    for name in ("metrics.jsonl", "events.jsonl"):
        with (cluster.points[0].run_dir / name).open("a") as file:
            file.write("".join(random.sample(bad[:-1], 3)) + bad[-1])
    with cluster.ledger.open("a") as file:
        file.write("[]\n{}\n")
    assert is_finished(cluster.points[0], cluster.ledger)


def test_a_scheduler_that_does_not_answer_for_a_while(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([True, False, False])

    def standing() -> dict[str, str]:
        if next(answers, True):
            return cluster.standing()
        raise InputError.of("squeue: no connection", "why", "fix")

    cluster.run(standing=standing)
    assert capsys.readouterr().out.count("no connection") == 2
    assert all(is_finished(point, cluster.ledger) for point in cluster.points)


@pytest.mark.dist_full
@pytest.mark.parametrize("scheduler", ["slurm", "kubernetes"])
def test_jobs_are_known_by_their_names(
    scheduler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the scheduler's own commands say is read; one of a name that has ended is replaced."""
    (tmp_path / "program.py").write_text("program\n")
    files = [("loopcoder/program.py", tmp_path / "program.py")]
    monkeypatch.setattr(snapshot, "_files", lambda: iter(files))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    told = tmp_path / "told"
    of_slurm = '#!/bin/sh\necho "$0 $*" >> TOLD\ncase $0 in *sbatch) echo Submitted ;; '
    of_slurm += "*squeue) cat QUEUE ;; esac\n"
    of_kubernetes = '#!/bin/sh\necho "$0 $*" >> TOLD\n[ "$1" != get ] || cat QUEUE\n'
    clients = {"sbatch": of_slurm, "squeue": of_slurm, "kubectl": of_kubernetes}
    for name, text in clients.items():
        (tmp_path / name).write_text(
            text.replace("TOLD", str(told)).replace("QUEUE", str(tmp_path / "queue"))
        )
        (tmp_path / name).chmod(0o755)
    command = ["launch", scheduler, "gpus_per_node=0"]
    if scheduler == "kubernetes":
        command += ["image=here", f"volumes=['claim:{tmp_path}']", "namespace=team"]
    command += ["sweep", "sweep.wait=false", "seed=1,2", f"run_dir={tmp_path / 'sweep'}"]
    command.append(f"data.build.cache_dir={tmp_path / 'cache'}")
    queue = {"slurm": "", "kubernetes": '{"items": []}'}
    (tmp_path / "queue").write_text(queue[scheduler])
    assert main(command) == 0
    first = told.read_text()
    assert first.count("sbatch" if scheduler == "slurm" else "kubectl create") == 2
    capsys.readouterr()

    from loopcoder.cli.schedulers import SCHEDULERS

    one, two = (
        SCHEDULERS[scheduler].name(tmp_path / "sweep" / folder)
        for folder in ("00_seed=1", "01_seed=2")
    )
    if scheduler == "slurm":
        (tmp_path / "queue").write_text(
            f"PENDING|Resources|17|{one}\nRUNNING|None|3|other|of|mine\n"
        )
    else:
        items = [
            {"metadata": {"name": one}, "status": {"restarts": 2}},
            {"metadata": {"name": two}, "status": {"terminalState": "Failed"}},
        ]
        (tmp_path / "queue").write_text(json.dumps({"items": items}))
    told.unlink()
    assert main(command) == 0
    again, printed = told.read_text(), capsys.readouterr().out
    assert f"[1/2] seed=1: job {one}, " in printed
    if scheduler == "slurm":
        assert "pending (Resources), job 17" in printed
        assert again.count("sbatch") == 1 and f"{tmp_path}/sweep/01_seed=2/" in again
    else:
        assert "started again 2 times" in printed
        assert f"delete jobset {two} --ignore-not-found --namespace=team" in again
        assert again.index("delete") < again.index("create")
        assert f"delete jobset {one}" not in again
