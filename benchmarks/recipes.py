"""The runs behind docs/recipes.md: which initialisation, which rate, what loops bring.

    python benchmarks/recipes.py run --corpus DIR --seconds 560 [STUDY ...] [--only POINT]
    python benchmarks/recipes.py tables [STUDY ...]

`run` trains what benchmarks/results/recipes lacks, study by study, several small models on each GPU
at a time, and ends within `--seconds`: what is unfinished then starts anew the next time. Every
finished run is a line of RESULTS/STUDY.jsonl, with the commit and the GPU. `tables` prints what
docs/recipes.md shows. `RESULTS` is --results, by default benchmarks/results/recipes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fp8_curves import visible_gpus
from loss_compare import QUIET, REPOSITORY
from recipe_studies import STUDIES
from recipe_study import Point, Study

RESULTS = REPOSITORY / "benchmarks" / "results" / "recipes"
KEPT_STEPS = 200
"""Steps whose loss and gradient norms are kept singly; of later ones the mean of ten is."""
FIRST_GUESS = 60.0
"""Seconds that a run takes, before one of its study has finished."""
Record = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run")
    run.add_argument("--corpus", type=Path, required=True, help="folder of a finished corpus")
    run.add_argument("--seconds", type=float, default=560.0, help="end by then")
    run.add_argument("--only", action="append", metavar="POINT", help="no other point; repeatable")
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
    return Runner(arguments.corpus, arguments.results, arguments.seconds).run(studies)


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


class Runner:
    """Trains what is missing, on all GPUs, until the time is up."""

    def __init__(self, corpus: Path, results: Path, seconds: float):
        self.corpus, self.results = corpus.resolve(), results
        self.started = time.monotonic()
        self.deadline = self.started + seconds
        self.lock = threading.Lock()
        self.living: set[subprocess.Popen[bytes]] = set()
        self.costs: dict[str, float] = {}
        self.took: dict[float, float] = {}
        self.failed = False

    def run(self, studies: list[Study]) -> int:
        """Run the studies one after the other; 0 when nothing is missing, 75 when something is."""
        self.results.mkdir(parents=True, exist_ok=True)
        timer = threading.Timer(self.deadline - time.monotonic(), self._stop)
        timer.daemon = True
        timer.start()
        left = sum(self._run_study(study) for study in studies)
        timer.cancel()
        return 1 if self.failed else 75 if left else 0

    def _stop(self) -> None:
        with self.lock:
            for process in self.living:
                os.killpg(process.pid, signal.SIGKILL)

    def _run_study(self, study: Study) -> int:
        """Run what is missing of a study; return how many runs are missing then."""
        done = {(r["point"], r["seed"]) for r in records(self.results, study)}
        missing = [(s, p) for s, p in study.runs() if (p.name, s) not in done]
        # Here and not in the threads: Hydra composes one config at a time.
        self.costs = {p.name: study.cost(p) for p in study.points}
        self.took = {}
        work: queue.Queue[tuple[int, Point]] = queue.Queue()
        for item in missing:
            work.put(item)
        gpus = visible_gpus() * study.runs_per_gpu
        threads = [
            threading.Thread(target=self._work, args=(study, gpu, work))
            for gpu in gpus[: len(missing)]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        left = len(missing) - len(records(self.results, study)) + len(done)
        print(f"[{self._now():4.0f} s] {study.name}: {left} runs left", flush=True)
        return left

    def _work(self, study: Study, gpu: str, work: queue.Queue[tuple[int, Point]]) -> None:
        while not self.failed:
            try:
                seed, point = work.get_nowait()
            except queue.Empty:
                return
            if time.monotonic() + self._expected(self.costs[point.name]) < self.deadline:
                self._train(study, point, seed, gpu)

    def _expected(self, cost: float) -> float:
        """Return the seconds of a run, from the finished one that is nearest in cost."""
        with self.lock:
            if not self.took:
                return FIRST_GUESS
            nearest = min(self.took, key=lambda other: abs(math.log(other / cost)))
            return self.took[nearest] * max(1.0, cost / nearest)

    def _train(self, study: Study, point: Point, seed: int, gpu: str) -> None:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            command = self._command(study, point, seed, Path(folder))
            log = Path(folder, "log")
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": "2"},
                    cwd=REPOSITORY,
                    start_new_session=True,
                )
                with self.lock:
                    self.living.add(process)
                code = process.wait()
                with self.lock:
                    self.living.discard(process)
            took = time.monotonic() - begun
            if code == -signal.SIGKILL and time.monotonic() >= self.deadline:
                return
            if code != 0:
                self.failed = True
                text = log.read_text(errors="replace")
                print(f"{study.name} {point.name} seed {seed} ended with {code}:\n{text[-3000:]}")
                return
            record = (
                read_run(Path(folder))
                if point.script is None
                else json.loads(Path(folder, "result.json").read_text())
            )
        record = {
            "point": point.name,
            "seed": seed,
            "overrides": [*study.shared, *point.overrides],
            "commit": commit(),
            "seconds": round(took, 1),
            **record,
        }
        with self.lock:
            cost = self.costs[point.name]
            self.took[cost] = max(took, self.took.get(cost, 0.0))
            with (self.results / f"{study.name}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        val = record["val"].get("val/loss", float("nan"))
        print(
            f"[{self._now():4.0f} s] {study.name} {point.name} seed {seed}: val {val:.4f}, "
            f"{took:.0f} s",
            flush=True,
        )

    def _command(self, study: Study, point: Point, seed: int, folder: Path) -> list[str]:
        overrides = [
            "data=corpus",
            f"path={self.corpus}",
            "data.verify=size",
            *(o for o in QUIET if not o.startswith("eval.at_end")),
            "parallel.nproc_per_node=1",
            f"seed={seed}",
            *study.shared,
            *point.overrides,
        ]
        if point.script is not None:
            script = str(REPOSITORY / "benchmarks" / point.script[0])
            out = ["--out", str(folder / "result.json")]
            return [sys.executable, script, *out, *point.script[1:], *overrides]
        return [sys.executable, "-m", "loopcoder", "train", *overrides, f"run_dir={folder / 'run'}"]

    def _now(self) -> float:
        return time.monotonic() - self.started


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


def commit() -> str:
    """Return the commit of this tree, or what LOOPCODER_COMMIT says where there is no git."""
    named = os.environ.get("LOOPCODER_COMMIT")
    git = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    return named or subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
