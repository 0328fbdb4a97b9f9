"""How long training waits for its data, as a share of the step.

    python benchmarks/data_wait.py --corpus DIR                       # on a GPU
    python benchmarks/data_wait.py --corpus DIR --models plt_tiny --steps 40

Real runs of `loopcoder train` on a finished corpus of our pipeline, read as packed sequences with
labels, at the 7B width (2 layers, 2 loops, two sequences of 8192 a step) and with the smallest
preset. The steps of the first tenth are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measured import REPOSITORY, UNSAVED

MODELS = {
    "plt_7b": (
        "model.num_loops=2",
        "model.num_layers=2",
        "data.seq_length=8192",
        "train.global_batch_size=2",
        "train.micro_batch_size=1",
    ),
    "plt_20m": (),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="folder of a finished corpus")
    parser.add_argument("--models", nargs="+", default=[*MODELS])
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    print("| model | step | tokens/s | wait for data | share |\n| --- | --- | --- | --- | --- |")
    for model in arguments.models:
        lines = train(model, arguments.corpus.resolve(), arguments.steps)
        step = statistics.median(line["step_time_s"] for line in lines)
        wait = statistics.fmean(line["data_wait_s"] for line in lines)
        speed = statistics.median(line["tokens_per_s"] for line in lines)
        print(
            f"| {model} | {step * 1e3:.1f} ms | {speed:,.0f} | {wait * 1e6:.0f} us "
            f"| {wait / step:.3%} |",
            flush=True,
        )


def train(model: str, corpus: Path, steps: int) -> list[dict[str, float]]:
    """Train some steps; return the records of all but the first tenth."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder, "run")
        command = [sys.executable, "-m", "loopcoder", "train", "data=corpus", f"path={corpus}"]
        command += ["data.reader=shuffled", f"model={model}", *MODELS.get(model, ()), *UNSAVED]
        command += [f"train.max_steps={steps}", "parallel.nproc_per_node=1", f"run_dir={run_dir}"]
        done = subprocess.run(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
        records = [json.loads(line) for line in (run_dir / "metrics.jsonl").open()]
    return [line for line in records if line.get("step", 0) > steps // 10]


if __name__ == "__main__":
    main()
