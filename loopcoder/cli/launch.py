"""`loopcoder launch`: hand a run to a scheduler, with its config and code as they are now."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import dataclass, fields, replace
from pathlib import Path

from launch.frozen import digest_of
from launch.slurm import SlurmConfig, check_job, job_script
from launch.snapshot import code_hash, copy_code
from loopcoder.backends import Backends, detect
from loopcoder.cli.arguments import Arguments, parse_arguments
from loopcoder.cli.checks import check_config
from loopcoder.config.compose import compose, save_config
from loopcoder.config.identity import as_folder, resolve_run_dir
from loopcoder.config.resolve import resolve
from loopcoder.config.schema import Config
from loopcoder.errors import EXIT_DONE, InputError
from loopcoder.storage.files import write_bytes
from loopcoder.storage.folders import make_folder

HELP = """\
Train on a cluster: what is submitted now is what runs later.

usage: loopcoder launch slurm [--dry-run] [key=value ...] train [--config-dir DIR] [key=value ...]

  loopcoder launch slurm nodes=4 time=1-00:00:00 train model=plt_1b run_dir=DIR
  loopcoder launch slurm --dry-run nodes=4 train model=plt_1b run_dir=DIR
                                      what would be submitted; nothing is written

What stands before `train` is for Slurm:
{fields}

The run's config and a copy of this program go to RUN_DIR/launch-HASH, which names both: files that
are changed later change nothing. The job starts itself again when it was stopped, preempted, or
lost a node (exit code 75), and not after 76 and 3. `scancel JOB` ends it for good,
`scancel --signal=TERM JOB` lets it save and start again. Its environment is that of the shell that
submits."""


@dataclass(frozen=True)
class Submission:
    """What is handed to the scheduler."""

    folder: Path
    """Of the script, config, code and output of this job, named by their hash."""
    config: Config
    script: str


def run(argv: list[str]) -> int:
    """Submit a run, or show what would be submitted."""
    if not argv or argv[0] in ("-h", "--help") or "--help" in argv or "-h" in argv:
        print(HELP.format(fields=_fields()))
        return EXIT_DONE
    if argv[0] != "slurm" or "train" not in argv:
        raise InputError.of(
            f"loopcoder launch {' '.join(argv)}",
            "it needs a scheduler, so far slurm, and the command that is to run, so far train",
            "loopcoder launch slurm nodes=2 train key=value ...",
        )
    at = argv.index("train")
    of_slurm = [argument for argument in argv[1:at] if argument != "--dry-run"]
    job = compose(
        parse_arguments(of_slurm, takes=["--dry-run"]).overrides,
        schema=SlurmConfig,
        root="launch_slurm",
    )
    submission = submit_to_slurm(job, parse_arguments(argv[at + 1 :], takes=[]), detect())
    if "--dry-run" in argv[:at]:
        print(f"# {submission.folder}/job.sh\n{submission.script}", end="")
        return EXIT_DONE
    _refuse_without_sbatch()
    _write(submission)
    print(_sbatch(submission.folder))
    print(f"config, code and output are in {submission.folder}")
    return EXIT_DONE


def submit_to_slurm(job: SlurmConfig, arguments: Arguments, backends: Backends) -> Submission:
    """Compose and check a run and the script of its job.

    Raises InputError where it could not start.
    """
    check_job(job)
    asked = compose(arguments.overrides, arguments.config_dir)
    tasks_per_node = asked.parallel.nproc_per_node or job.gpus_per_node or 1
    run_dir = resolve_run_dir(asked, resolve(asked, backends)).absolute()
    parallel = replace(asked.parallel, nproc_per_node=tasks_per_node)
    config = replace(asked, run_dir=str(run_dir), parallel=parallel)
    on_nodes = _on_nodes(job, backends)
    check_config(resolve(config, on_nodes), job.nodes * tasks_per_node, on_nodes)
    sha256 = digest_of(config)
    name = f"{code_hash()}-{sha256[:10]}"
    folder = run_dir / f"launch-{name}"
    script = job_script(
        job,
        name=f"{as_folder(run_dir.name)}-{hashlib.sha256(bytes(run_dir)).hexdigest()[:8]}",
        tasks_per_node=tasks_per_node,
        run_dir=run_dir,
        folder=folder,
        code=folder / "code",
        config=folder / "config.yaml",
        config_sha256=sha256,
        asked=arguments.asked,
    )
    return Submission(folder, config, script)


def _on_nodes(job: SlurmConfig, backends: Backends) -> Backends:
    """Return what the nodes have, as far as it is known here: their number of GPUs, and of which
    kind if this machine has such."""
    if job.gpus_per_node == 0:
        return replace(backends, gpu_count=0, gpu_name=None, compute_capability=None)
    if backends.has_gpu:
        return replace(backends, gpu_count=job.gpus_per_node)
    return replace(backends, gpu_count=job.gpus_per_node, compute_capability=(9, 0))


def _refuse_without_sbatch() -> None:
    if shutil.which("sbatch") is None:
        raise InputError.of(
            "there is no sbatch here",
            "a job is submitted by Slurm's own command",
            "the same command on a login node of the cluster; --dry-run shows the job without it",
        )


def _write(submission: Submission) -> None:
    folder = submission.folder
    make_folder(folder, "run_dir")
    copy_code(folder, "code")
    save_config(submission.config, folder / "config.yaml")
    write_bytes(folder / "job.sh", submission.script.encode())


def _sbatch(folder: Path) -> str:
    """Submit the script; return what sbatch says."""
    command = ["sbatch", str(folder / "job.sh")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError.of(
            f"sbatch {folder}/job.sh: {done.stderr.strip() or done.returncode}",
            "Slurm does not take this job",
            "other settings before `train`; sinfo shows partitions and limits",
        )
    return done.stdout.strip()


def _fields() -> str:
    docs = SlurmConfig.__pydantic_fields__  # type: ignore[attr-defined]
    return "\n".join(
        f"  {f.name:<16} {' '.join(str(docs[f.name].description).split())}"
        for f in fields(SlurmConfig)
    )
