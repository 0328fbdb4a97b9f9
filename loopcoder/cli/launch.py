"""`loopcoder launch`: hand a run to a scheduler, with its config and code as they are now."""

from __future__ import annotations

import dataclasses
import sys

from loopcoder.backends import detect, kernels_fault
from loopcoder.cli.arguments import parse_arguments
from loopcoder.cli.handing_over import hand_over, show
from loopcoder.cli.launch_sweep import run_sweep_jobs
from loopcoder.cli.schedulers import SCHEDULERS, Scheduler, refuse_without
from loopcoder.config.compose import compose
from loopcoder.errors import EXIT_DONE, InputError

HELP = """\
Train on a cluster: what is submitted now is what runs later.

usage: loopcoder launch slurm|kubernetes [--dry-run] [key=value ...]
                        train|sweep [--config-dir DIR] [key=value ...]

  loopcoder launch slurm nodes=4 time=1-00:00:00 train model=plt_1b run_dir=DIR
  loopcoder launch kubernetes nodes=4 image=IMAGE volumes="['shared:/shared']" \\
      train model=plt_1b run_dir=/shared/run data.build.cache_dir=/shared/cache
  loopcoder launch slurm --dry-run nodes=4 train model=plt_1b run_dir=DIR
                                      what would be submitted; nothing is written
  loopcoder launch slurm nodes=2 sweep model.num_loops=1,2,3,4 optim.lr=1e-3,2e-3
                                      a job of two nodes for every combination
  loopcoder launch slurm --help       what may stand before `train` or `sweep`

The run's config and a copy of this program go to RUN_DIR/launch-HASH, which names both: files that
are changed later change nothing. A job starts again by itself when it was stopped, preempted, or
lost a node (exit code 75), and not after 76, 3 and 1.

A sweep waits for its jobs and shows how far they are, then a table and a plot (sweep.wait=false: it
submits them). They do not need it: the same command finds those that are queued, run or are done,
and submits those that failed."""


def run(argv: list[str]) -> int:
    """Submit a run, or show what would be submitted."""
    scheduler = SCHEDULERS.get(argv[0]) if argv else None
    if not argv or argv[0] in ("-h", "--help") or {"-h", "--help"} & {*argv[1:]}:
        print(HELP if scheduler is None else f"{HELP}\n\n{_help(scheduler)}")
        return EXIT_DONE
    at = next((i for i, argument in enumerate(argv) if argument in ("train", "sweep")), None)
    if scheduler is None or at is None:
        raise InputError.of(
            f"loopcoder launch {' '.join(argv)}",
            f"it needs a scheduler, {' or '.join(SCHEDULERS)}, and the command that is to run, "
            "train or sweep",
            "loopcoder launch slurm nodes=2 train key=value ...",
        )
    own = [argument for argument in argv[1:at] if argument != "--dry-run"]
    job = compose(
        parse_arguments(own, takes=["--dry-run"]).overrides,
        schema=scheduler.schema,
        root=f"launch_{argv[0]}",
    )
    here, is_dry = detect(), "--dry-run" in argv[:at]
    if job.gpus_per_node and (fault := kernels_fault()) is not None:
        print(
            f"loopcoder: the copy of this program that the job runs has no CUDA kernels: {fault}; "
            "`make kernels` builds them here, without a GPU",
            file=sys.stderr,
        )
    arguments = parse_arguments(argv[at + 1 :], takes=[])
    if argv[at] == "sweep":
        return run_sweep_jobs(argv[0], job, arguments, here, is_dry=is_dry)
    submitted, text = scheduler.job(job, arguments, here)
    if is_dry:
        show(scheduler, job, submitted, text)
        return EXIT_DONE
    refuse_without(argv[0], scheduler)
    print(hand_over(argv[0], scheduler, job, submitted, text))
    print(f"config, code and output are in {submitted.folder}")
    return EXIT_DONE


def _help(scheduler: Scheduler) -> str:
    docs = scheduler.schema.__pydantic_fields__
    fields = "\n".join(
        f"  {f.name:<16} {' '.join(str(docs[f.name].description).split())}"
        for f in dataclasses.fields(scheduler.schema)
    )
    return scheduler.help.format(fields=fields)
