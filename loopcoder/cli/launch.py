"""`loopcoder launch`: hand a run to a scheduler, with its config and code as they are now."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch import kubernetes, slurm
from launch.kubernetes import KubernetesConfig
from launch.slurm import SlurmConfig
from loopcoder.backends import Backends, detect, kernels_fault
from loopcoder.cli.arguments import Arguments, parse_arguments
from loopcoder.cli.submission import Submission, submission
from loopcoder.config.compose import compose
from loopcoder.config.identity import as_folder
from loopcoder.config.schema import ParallelConfig
from loopcoder.errors import EXIT_DONE, InputError

HELP = """\
Train on a cluster: what is submitted now is what runs later.

usage: loopcoder launch slurm|kubernetes [--dry-run] [key=value ...]
                        train [--config-dir DIR] [key=value ...]

  loopcoder launch slurm nodes=4 time=1-00:00:00 train model=plt_1b run_dir=DIR
  loopcoder launch kubernetes nodes=4 image=IMAGE volumes="['shared:/shared']" \\
      train model=plt_1b run_dir=/shared/run data.build.cache_dir=/shared/cache
  loopcoder launch slurm --dry-run nodes=4 train model=plt_1b run_dir=DIR
                                      what would be submitted; nothing is written
  loopcoder launch slurm --help       what may stand before `train`

The run's config and a copy of this program go to RUN_DIR/launch-HASH, which names both: files that
are changed later change nothing. A job starts again by itself when it was stopped, preempted, or
lost a node (exit code 75), and not after 76, 3 and 1."""

_SLURM = """\
Of Slurm, before `train`:
{fields}

`scancel JOB` ends a job for good, `scancel --signal=TERM JOB` lets it save and start again. Its
environment is that of the shell that submits."""

_KUBERNETES = """\
Of Kubernetes, before `train`; the cluster has JobSet (jobset.x-k8s.io):
{fields}

`kubectl delete jobset NAME` lets a job save and ends it for good. Its environment is the image's,
env= and secrets=; nothing comes from the shell that submits."""


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


def run(argv: list[str]) -> int:
    """Submit a run, or show what would be submitted."""
    scheduler = SCHEDULERS.get(argv[0]) if argv else None
    if not argv or argv[0] in ("-h", "--help") or {"-h", "--help"} & {*argv[1:]}:
        print(HELP if scheduler is None else f"{HELP}\n\n{_help(scheduler)}")
        return EXIT_DONE
    if scheduler is None or "train" not in argv:
        raise InputError.of(
            f"loopcoder launch {' '.join(argv)}",
            f"it needs a scheduler, {' or '.join(SCHEDULERS)}, and the command that is to run, so "
            "far train",
            "loopcoder launch slurm nodes=2 train key=value ...",
        )
    at = argv.index("train")
    own = [argument for argument in argv[1:at] if argument != "--dry-run"]
    job = compose(
        parse_arguments(own, takes=["--dry-run"]).overrides,
        schema=scheduler.schema,
        root=f"launch_{argv[0]}",
    )
    submitted, text = scheduler.job(job, parse_arguments(argv[at + 1 :], takes=[]), detect())
    if job.gpus_per_node and (fault := kernels_fault()) is not None:
        print(
            f"loopcoder: the copy of this program that the job runs has no CUDA kernels: {fault}; "
            "`make kernels` builds them here, without a GPU",
            file=sys.stderr,
        )
    if "--dry-run" in argv[:at]:
        print(f"# {submitted.folder}/{scheduler.file}\n{text}", end="")
        return EXIT_DONE
    if shutil.which(scheduler.client) is None:
        raise InputError.of(
            f"there is no {scheduler.client} here",
            f"a job is submitted by {argv[0].capitalize()}'s own command",
            "the same command where the cluster is reached; --dry-run shows the job without it",
        )
    print(scheduler.hand_over(submitted.write(scheduler.file, text)))
    print(f"config, code and output are in {submitted.folder}")
    return EXIT_DONE


def _help(scheduler: Scheduler) -> str:
    docs = scheduler.schema.__pydantic_fields__
    fields = "\n".join(
        f"  {f.name:<16} {' '.join(str(docs[f.name].description).split())}"
        for f in dataclasses.fields(scheduler.schema)
    )
    return scheduler.help.format(fields=fields)


def _slurm_job(job: SlurmConfig, arguments: Arguments, here: Backends) -> tuple[Submission, str]:
    slurm.check_job(job)
    submitted = submission(arguments, here, job.nodes, job.gpus_per_node)
    run_dir = submitted.run_dir
    script = slurm.job_script(
        job,
        name=f"{as_folder(run_dir.name)}-{hashlib.sha256(bytes(run_dir)).hexdigest()[:8]}",
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


def _said(command: list[str], why: str, fix: str) -> str:
    """Run a scheduler's command; return what it says."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        fact = f"{' '.join(command)}: {done.stderr.strip() or done.returncode}"
        raise InputError.of(fact, why, fix)
    return done.stdout.strip()


SCHEDULERS = {
    "slurm": Scheduler(SlurmConfig, _SLURM, "job.sh", _slurm_job, "sbatch", _sbatch),
    "kubernetes": Scheduler(
        KubernetesConfig, _KUBERNETES, "jobset.yaml", _kubernetes_job, "kubectl", _create
    ),
}
