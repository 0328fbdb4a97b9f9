"""The schedulers that `loopcoder launch` hands jobs to, and what it asks of their commands."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch import kubernetes, slurm
from launch.environment import pod_environment, shell_environment
from launch.jobs import ask_slurm, jobs_of
from launch.kubernetes import KubernetesConfig
from launch.slurm import SlurmConfig
from loopcoder.backends import Backends
from loopcoder.cli.arguments import Arguments, say_aside
from loopcoder.cli.submission import Submission, submission
from loopcoder.config.identity import as_folder
from loopcoder.config.schema import ParallelConfig
from loopcoder.errors import InputError, Unreachable

_SLURM = """\
Of Slurm, before `train` or `sweep`:
{fields}

`scancel JOB` ends a job for good, `scancel --signal=TERM JOB` lets it save and start again. Its
environment is that of the shell that submits; environment.txt in the job's folder, and --dry-run,
list its variables by name. `loopcoder runs RUN_DIR` says what has become of it."""

_KUBERNETES = """\
Of Kubernetes, before `train` or `sweep`; the cluster has JobSet (jobset.x-k8s.io):
{fields}

`kubectl delete jobset NAME` lets a job save and ends it for good. Its environment is the image's,
env= and secrets=; nothing comes from the shell that submits."""


_ANSWERS_S = 10
"""Within which kubectl says whether there is a job."""
_SUBMITTED_S = 120
"""Within which a scheduler takes a job or lists those of a user."""


@dataclass(frozen=True)
class Scheduler:
    """What jobs can be handed to."""

    schema: type[Any]
    """Of what stands before `train`."""
    help: str
    file: str
    """What it reads, in the folder of the job."""
    job: Callable[[Any, Arguments, Backends], tuple[Submission, str]]
    """Compose and check a run; returns it and the text of `file`."""
    client: str
    """Its command, which the machine that submits must have."""
    hand_over: Callable[[Path], str]
    """Submit the file; returns what to say."""
    name: Callable[[Path], str]
    """Returns the name of the job of a run, by its folder."""
    standing: Callable[[Any], dict[str, str]]
    """Returns the state of each of the user's jobs that is queued or runs, by name."""
    clear: Callable[[Any, str], None]
    """Removes what is left of a job of a name that has ended."""
    environment: Callable[[Any], str]
    """Names what a job gets of the environment."""
    refuse_second: Callable[[Any, Submission], None]
    """Raises InputError if this very job waits or runs."""
    known_by: Callable[[str, Path], str | None]
    """Returns number or name of a job, from what the scheduler said and the run's folder."""


def _slurm_job(job: SlurmConfig, arguments: Arguments, here: Backends) -> tuple[Submission, str]:
    slurm.check_job(job)
    submitted = submission(arguments, here, job.nodes, job.gpus_per_node)
    run_dir = submitted.run_dir
    script = slurm.job_script(
        job,
        name=_slurm_name(run_dir),
        tasks_per_node=submitted.config.parallel.nproc_per_node or 1,
        run_dir=run_dir,
        folder=submitted.folder,
        code=submitted.code,
        config=submitted.config_file,
        config_sha256=submitted.sha256,
        asked=arguments.asked,
    )
    return submitted, script


def _kubernetes_job(
    job: KubernetesConfig, arguments: Arguments, here: Backends
) -> tuple[Submission, str]:
    def placed(parallel: ParallelConfig, run_dir: Path) -> ParallelConfig:
        if parallel.rendezvous is not None or parallel.nodes not in (1, job.nodes):
            raise InputError.of(
                f"parallel.nodes={parallel.nodes} parallel.rendezvous={parallel.rendezvous}",
                "the job decides on how many nodes there are processes, and where they meet",
                f"nodes={parallel.nodes} before `train`, and neither of these after it",
            )
        where = kubernetes.rendezvous(job, kubernetes.job_name(run_dir))
        return replace(parallel, nodes=job.nodes, rendezvous=where)

    kubernetes.check_job(job)
    counts = (job.nodes, job.gpus_per_node)
    submitted = submission(arguments, here, *counts, placed, has_keys=not job.secrets)
    cache_dir = Path(submitted.config.data.build.cache_dir).expanduser().absolute()
    written = {"run_dir": submitted.run_dir, "data.build.cache_dir": cache_dir}
    kubernetes.check_paths(job, written)
    manifest = kubernetes.job_set(
        job,
        name=kubernetes.job_name(submitted.run_dir),
        code=submitted.code,
        config=submitted.config_file,
        config_sha256=submitted.sha256,
        asked=arguments.asked,
    )
    return submitted, kubernetes.to_manifest(manifest)


def _sbatch(script: Path) -> str:
    fix = "other settings before `train`; sinfo shows partitions and limits"
    return _said(["sbatch", str(script)], "Slurm does not take this job", fix)


def _create(manifest: Path) -> str:
    return _said(
        ["kubectl", "create", "-f", str(manifest)],
        "Kubernetes does not take this job",
        "kubectl cluster-info says whether the cluster is reached; of a name that exists, kubectl "
        "delete jobset NAME once the job before has ended; else other settings before `train`",
    )


def _slurm_name(run_dir: Path) -> str:
    return f"{as_folder(run_dir.name)}-{hashlib.sha256(bytes(run_dir)).hexdigest()[:8]}"


def _squeue(_: SlurmConfig) -> dict[str, str]:
    why, fix = "Slurm does not answer", "sinfo says whether it does; then the same command"
    lines = _listed(["squeue", "--me", "--noheader", "--format=%T|%r|%i|%j"], why, fix).splitlines()
    found = {}
    for state, reason, number, name in (line.split("|", 3) for line in lines if "|" in line):
        because = "" if reason in ("None", "") else f" ({reason})"
        found[name] = f"{state.lower()}{because}, job {number}"
    return found


def _job_sets(job: KubernetesConfig) -> dict[str, str]:
    command = ["kubectl", "get", "jobsets", "--output=json", *_namespace(job)]
    why, fix = "Kubernetes does not answer", "kubectl cluster-info says whether it is reached"
    found = {}
    for item in json.loads(_listed(command, why, fix))["items"]:
        status = item.get("status", {})
        if not status.get("terminalState"):
            restarts = status.get("restarts", 0)
            found[item["metadata"]["name"]] = f"stands, started again {restarts} times"
    return found


def _delete_job_set(job: KubernetesConfig, name: str) -> None:
    if name in _job_sets(job):
        return  # it stands
    command = ["kubectl", "delete", "jobset", name, "--ignore-not-found", *_namespace(job)]
    _said(command, "a JobSet that has ended keeps its name", f"kubectl delete jobset {name}")


def _refuse_second_job(_: SlurmConfig, submitted: Submission) -> None:
    asked = ask_slurm(jobs_of(submitted.run_dir))
    if asked.silent:
        say_aside(f"loopcoder: squeue does not say what jobs of this run do: {asked.silent}")
    for job in (job for job in asked.jobs if job.is_active):
        if job.folder == submitted.folder:
            raise InputError.of(
                f"{job}, with this same config and code",
                "it starts again by itself until the run is finished; a second one would only wait "
                "for its end",
                f"loopcoder runs {submitted.run_dir} shows it; scancel {job.id} before it is "
                "submitted anew",
            )
        say_aside(f"loopcoder: {job}, with another config or code: this one starts after its end")


def _number(said: str, _: Path) -> str | None:
    found = re.search(r"Submitted batch job (\d+)", said)
    return found[1] if found else None


def _refuse_second_job_set(job: KubernetesConfig, submitted: Submission) -> None:
    name, place = kubernetes.job_name(submitted.run_dir), _namespace(job)
    command = ["kubectl", "get", "jobset", name, *place, "--ignore-not-found", "--output=json"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_ANSWERS_S
        )
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        found = {}
    if found.get("kind") != "JobSet":
        return  # there is none, or creating it says what is wrong
    delete = " ".join(["kubectl delete jobset", name, *place])
    if state := found.get("status", {}).get("terminalState"):
        raise InputError.of(
            f"JobSet {name} of this run is there, and has ended: {state}",
            "a run has one JobSet, whose name is its folder's",
            f"{delete}, then the same command again",
        )
    raise InputError.of(
        f"JobSet {name} of this run waits or runs",
        "it starts again by itself until the run is finished; a run has one JobSet at a time",
        f"kubectl get pods --selector loopcoder/run={name} shows it; {delete} before it is "
        "submitted anew",
    )


def _namespace(job: KubernetesConfig) -> list[str]:
    return [] if job.namespace is None else [f"--namespace={job.namespace}"]


def _nothing_is_left(_: Any, __: str) -> None:
    """A job of Slurm that has ended does not keep its name."""


def refuse_without(name: str, scheduler: Scheduler) -> None:
    """Raise InputError where the scheduler's command is missing."""
    if shutil.which(scheduler.client) is None:
        raise InputError.of(
            f"there is no {scheduler.client} here",
            f"a job is submitted by {name.capitalize()}'s own command",
            "the same command where the cluster is reached; --dry-run shows the job without it",
        )


def _listed(command: list[str], why: str, fix: str) -> str:
    """Return what a scheduler lists. Raises Unreachable where it does not answer."""
    try:
        return _said(command, why, fix)
    except InputError as error:
        raise Unreachable(str(error)) from error


def _said(command: list[str], why: str, fix: str) -> str:
    """Run a scheduler's command; return what it says."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SUBMITTED_S
        )
    except subprocess.TimeoutExpired:
        fact = f"{' '.join(command)}: no answer within {_SUBMITTED_S} s"
        raise InputError.of(fact, why, fix) from None
    if done.returncode:
        fact = f"{' '.join(command)}: {done.stderr.strip() or done.returncode}"
        raise InputError.of(fact, why, fix)
    return done.stdout.strip()


SCHEDULERS = {
    "slurm": Scheduler(
        schema=SlurmConfig,
        help=_SLURM,
        file="job.sh",
        job=_slurm_job,
        client="sbatch",
        hand_over=_sbatch,
        name=_slurm_name,
        standing=_squeue,
        clear=_nothing_is_left,
        environment=lambda job: shell_environment(job.options, os.environ),
        refuse_second=_refuse_second_job,
        known_by=_number,
    ),
    "kubernetes": Scheduler(
        schema=KubernetesConfig,
        help=_KUBERNETES,
        file="jobset.yaml",
        job=_kubernetes_job,
        client="kubectl",
        hand_over=_create,
        name=kubernetes.job_name,
        standing=_job_sets,
        clear=_delete_job_set,
        environment=lambda job: pod_environment(job.env, job.secrets),
        refuse_second=_refuse_second_job_set,
        known_by=lambda _, run_dir: kubernetes.job_name(run_dir),
    ),
}
