"""The runs behind docs/recipes.md: which initialisation, which rate, what loops bring.

    python benchmarks/recipes.py run --corpus DIR --seconds 560 [STUDY ...] [--only POINT]
    python benchmarks/recipes.py run --corpus DIR --diagnose dial_20m      (docs/loops.md)
    python benchmarks/recipes.py tables [STUDY ...]

`run` trains what benchmarks/results/recipes lacks, study by study, several small models on each GPU
at a time, and ends within `--seconds`: what is unfinished then starts anew the next time. Every
finished run is a line of RESULTS/STUDY.jsonl, with the commit and the GPU. With --diagnose each is
diagnosed before its checkpoint goes, into RESULTS/STUDY/POINT-seedN.json, of which
`loopcoder diagnose diagnosis=FILE ...` makes figures. `tables` prints what docs/recipes.md shows.
`RESULTS` is --results, by default benchmarks/results/recipes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from fp8_curves import visible_gpus
from measured import REPOSITORY, UNSAVED, commit
from recipe_studies import STUDIES
from recipe_study import Point, Study

RESULTS = REPOSITORY / "benchmarks" / "results" / "recipes"
KEPT_STEPS = 200
"""Steps whose loss and gradient norms are kept singly; of later ones the mean of ten is."""
FIRST_GUESS = 60.0
"""Seconds that a run takes, before any has finished."""
Record = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run")
    run.add_argument("--corpus", type=Path, required=True, help="folder of a finished corpus")
    run.add_argument("--seconds", type=float, default=560.0, help="end by then")
    run.add_argument("--only", action="append", metavar="POINT", help="no other point; repeatable")
    run.add_argument("--diagnose", action="store_true", help="diagnose what is trained")
    run.add_argument("studies", nargs="*", metavar="STUDY", help=", ".join(STUDIES))
    tables = verbs.add_parser("tables")
    tables.add_argument("studies", nargs="*", metavar="STUDY")
    arguments = parser.parse_args()
    unknown = set(arguments.studies) - set(STUDIES)
    if unknown:
        parser.error(f"no such study: {', '.join(sorted(unknown))}; there are {', '.join(STUDIES)}")
    studies = [STUDIES[name] for name in arguments.studies or STUDIES]
    if arguments.verb == "tables":
        for study in studies:
            print(f"{study.name}\n\n{study.table(records(arguments.results, study))}\n")
        return 0
    if arguments.only:
        studies = [replace(s, points=_named(s, arguments.only, parser)) for s in studies]
    runner = Runner(arguments.corpus, arguments.results, arguments.seconds, arguments.diagnose)
    return runner.run(studies)


def _named(
    study: Study, names: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[Point, ...]:
    points = tuple(point for point in study.points if point.name in names)
    if len(points) < len(set(names)):
        parser.error(f"{study.name} has {', '.join(repr(p.name) for p in study.points)}")
    return points


def records(results: Path, study: Study) -> list[Record]:
    """Return what is on record of a study, in the order of its points."""
    path = results / f"{study.name}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = {(r["point"], r["seed"]): r for r in map(json.loads, lines)}
    return [found[key] for key in ((p.name, s) for s, p in study.runs()) if key in found]


@dataclass(frozen=True)
class Job:
    """One run of a study, the floating-point operations it takes, its part of a GPU."""

    study: Study
    point: Point
    seed: int
    cost: float

    @property
    def share(self) -> Fraction:
        return Fraction(1, self.study.runs_per_gpu)


class Runner:
    """Trains what is missing, on all GPUs, until the time is up.

    Runs begin in the order of their studies, seed by seed and the longest first, each on the GPU
    with the most room, as soon as there is enough for it.
    """

    def __init__(self, corpus: Path, results: Path, seconds: float, diagnoses: bool = False):
        self.corpus, self.results, self.diagnoses = corpus.resolve(), results, diagnoses
        self.started = time.monotonic()
        self.deadline = self.started + seconds
        self.changed = threading.Condition()
        self.load = dict.fromkeys(visible_gpus(), Fraction(0))
        self.living: set[subprocess.Popen[bytes]] = set()
        self.rates: dict[float, float] = {}
        """Operations per second that a whole GPU would do, by the cost of a finished run."""
        self.failed = False

    def run(self, studies: list[Study]) -> int:
        """Run the studies; 0 when nothing is missing, 75 when something is, 1 after a failure."""
        self.results.mkdir(parents=True, exist_ok=True)
        timer = threading.Timer(self.deadline - time.monotonic(), self._stop)
        timer.daemon = True
        timer.start()
        # Before any thread: Hydra composes one config at a time.
        jobs = [job for study in studies for job in self._missing(study)]
        threads = [thread for job in jobs if (thread := self._begin(job))]
        for thread in threads:
            thread.join()
        timer.cancel()
        left = [len(list(s.runs())) - len(records(self.results, s)) for s in studies]
        for study, count in zip(studies, left, strict=True):
            print(f"[{self._now():4.0f} s] {study.name}: {count} runs left", flush=True)
        return 1 if self.failed else 75 if any(left) else 0

    def _stop(self) -> None:
        with self.changed:
            for process in self.living:
                os.killpg(process.pid, signal.SIGKILL)

    def _missing(self, study: Study) -> list[Job]:
        done = {(r["point"], r["seed"]) for r in records(self.results, study)}
        costs = {point.name: study.cost(point) for point in study.points}
        jobs = [
            Job(study, point, seed, costs[point.name])
            for seed, point in study.runs()
            if (point.name, seed) not in done
        ]
        return sorted(jobs, key=lambda job: (study.seeds.index(job.seed), -job.cost))

    def _begin(self, job: Job) -> threading.Thread | None:
        """Wait for room and begin the run; None if it would not end in time."""
        with self.changed:
            self.changed.wait_for(lambda: min(self.load.values()) + job.share <= 1)
            late = time.monotonic() + self._expected(job) > self.deadline
            if late:
                return None
            gpu = min(self.load, key=self.load.__getitem__)
            self.load[gpu] += job.share
        thread = threading.Thread(target=self._run, args=(job, gpu))
        thread.start()
        return thread

    def _expected(self, job: Job) -> float:
        """Return the seconds of a run, from the finished one that is nearest in cost."""
        if not self.rates:
            return FIRST_GUESS
        nearest = min(self.rates, key=lambda cost: abs(math.log(cost / job.cost)))
        return job.cost / (self.rates[nearest] * job.share)

    def _run(self, job: Job, gpu: str) -> None:
        try:
            self._train(job, gpu)
        finally:
            with self.changed:
                self.load[gpu] -= job.share
                self.changed.notify()

    def _train(self, job: Job, gpu: str) -> None:
        begun = time.monotonic()
        name = f"{job.study.name} {job.point.name} seed {job.seed}"
        with tempfile.TemporaryDirectory() as folder:
            code = self._execute(self._command(job, Path(folder)), gpu, Path(folder, "log"))
            took = time.monotonic() - begun
            if code == -signal.SIGKILL and time.monotonic() >= self.deadline:
                return
            if code != 0:
                self.failed = True
                text = Path(folder, "log").read_text(errors="replace")
                print(f"{name} ended with {code}:\n{text[-3000:]}", flush=True)
                return
            record = (
                read_run(Path(folder))
                if job.point.script is None
                else json.loads(Path(folder, "result.json").read_text())
            )
            self._keep(job, took, record)
            print(f"[{self._now():4.0f} s] {name}: {_loss(record)}, {took:.0f} s", flush=True)
            if self.diagnoses and job.point.script is None:
                self._diagnose(job, Path(folder), gpu)

    def _keep(self, job: Job, took: float, record: Record) -> None:
        record = {
            "point": job.point.name,
            "seed": job.seed,
            "overrides": [*job.study.shared, *job.point.overrides],
            "commit": commit(),
            "seconds": round(took, 1),
            **record,
        }
        with self.changed:
            self.rates[job.cost] = job.cost / (took * job.share)
            with (self.results / f"{job.study.name}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _diagnose(self, job: Job, folder: Path, gpu: str) -> None:
        """Diagnose what was trained, and keep what was found."""
        name = re.sub(r"[^\w.-]+", "_", f"{job.point.name}-seed{job.seed}")
        asked = [f"checkpoint={folder / 'run'}", f"output={folder / 'found'}"]
        asked += [f"diagnose.name={name}", f"data.build.cache_dir={folder / 'cache'}"]
        command = [sys.executable, "-m", "loopcoder", "diagnose", *asked]
        log = folder / "diagnosis.log"
        code = self._execute(command, gpu, log)
        if code == 0:
            kept = self.results / job.study.name
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / "found" / f"{name}.json", kept / f"{name}.json")
        if code == 0 or time.monotonic() >= self.deadline:
            return
        self.failed = True
        text = log.read_text(errors="replace")
        print(f"{job.study.name}: no diagnosis of {name}:\n{text[-3000:]}", flush=True)

    def _execute(self, command: list[str], gpu: str, log: Path) -> int:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": "2"},
                cwd=REPOSITORY,
                start_new_session=True,
            )
        with self.changed:
            self.living.add(process)
        code = process.wait()
        with self.changed:
            self.living.discard(process)
        return code

    def _command(self, job: Job, folder: Path) -> list[str]:
        overrides = [
            "data=corpus",
            f"path={self.corpus}",
            "data.verify=size",
            *(o for o in UNSAVED if not o.startswith("eval.at_end")),
            f"checkpoint.save_at_end={self.diagnoses}",
            "parallel.nproc_per_node=1",
            f"seed={job.seed}",
            *job.study.shared,
            *job.point.overrides,
        ]
        if job.point.script is not None:
            script = str(REPOSITORY / "benchmarks" / job.point.script[0])
            out = ["--out", str(folder / "result.json")]
            return [sys.executable, script, *out, *job.point.script[1:], *overrides]
        return [sys.executable, "-m", "loopcoder", "train", *overrides, f"run_dir={folder / 'run'}"]

    def _now(self) -> float:
        return time.monotonic() - self.started


def _loss(record: Record) -> str:
    return f"val {record['val'].get('val/loss', math.nan):.4f}"


def read_run(folder: Path) -> Record:
    """Return what is kept of a run: losses, gradient norms, evaluations, speed, the GPU."""
    lines = [json.loads(text) for text in (folder / "run" / "metrics.jsonl").open()]
    steps = [line for line in lines if "loss" in line]
    first = steps[:KEPT_STEPS]
    loops = sorted({k for line in first for k in line if k.startswith("grad_norm/")})
    val = {
        k: v
        for line in lines
        for k, v in line.items()
        if k.startswith("val/") and isinstance(v, float)
    }
    speeds = [line["tokens_per_s"] for line in steps[20:] if "tokens_per_s" in line]
    rounded: Record = {
        "steps": steps[-1]["step"],
        "tokens": steps[-1]["tokens"],
        "val": {k: round(v, 5) for k, v in val.items()},
        "first_losses": [round(line["loss"], 4) for line in first],
        "first_grad_norms": [round(line["grad_norm"], 4) for line in first],
        "losses": [round(x, 4) for x in _means_of_ten([line["loss"] for line in steps])],
        "tokens_per_s": round(statistics.median(speeds)) if speeds else None,
        "device": _device(),
    }
    for key in loops:
        rounded[f"first_{key}"] = [round(line[key], 4) for line in first]
    return rounded


def _means_of_ten(values: list[float]) -> Iterator[float]:
    for start in range(0, len(values), 10):
        yield statistics.fmean(values[start : start + 10])


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


if __name__ == "__main__":
    sys.exit(main())
