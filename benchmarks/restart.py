"""How long a killed run takes to its next step, and where that time goes.

    python benchmarks/restart.py                                  # 7B width, 2 layers, on one GPU
    python benchmarks/restart.py --gpus 2 --kills 3
    python benchmarks/restart.py --overrides model=plt_tiny       # to try it without a GPU

One rank of `loopcoder train` is killed (SIGKILL) as soon as a checkpoint counts and a further step
is trained; the others notice and end, and the same command starts again at once. The clock runs
from the kill to the first step after the checkpoint that is logged.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

WIDE = ("model=plt_7b", "model.num_loops=2", "model.num_layers=2", "model.vocab_size=76800")
WIDE = (*WIDE, "data.build.tokenizer_vocab_size=4096", "data.seq_length=8192")
QUIET = ("logging.interval=1", "logging.wandb=off", "logging.tensorboard=off")
QUIET = (*QUIET, "logging.plots=false", "logging.progress=false", "eval.interval=null")
WAIT_S = 500.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpus", type=int, default=1, help="processes")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--interval", type=int, default=20, help="steps between checkpoints")
    parser.add_argument("--folder", help="where the run goes; default: a temporary folder")
    parser.add_argument("--overrides", nargs="*", default=[*WIDE])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run_dir = Path(folder, "run")
        command = [sys.executable, "-m", "loopcoder", "train", *arguments.overrides, *QUIET]
        command += [f"checkpoint.interval={arguments.interval}", "checkpoint.keep=1"]
        command += ["checkpoint.async_save=true", f"run_dir={run_dir}", "train.max_steps=100000"]
        command += [f"parallel.nproc_per_node={arguments.gpus}"]
        command += [f"train.global_batch_size={2 * arguments.gpus}", "train.micro_batch_size=1"]
        print("| kill | ended after | first step after | steps lost |\n| --- | --- | --- | --- |")
        totals = []
        process = start(command)
        for number in range(arguments.kills):
            step = after_a_save(run_dir, process)
            killed, rank = time.time(), number % arguments.gpus
            os.kill(rank_process(process, rank), signal.SIGKILL)
            process.wait(WAIT_S)
            ended = time.time()
            process = start(command)
            saved = newest_checkpoint(run_dir)
            record = wait_for(lambda s=saved, t=killed: next_step(run_dir, s, t), process)
            totals.append(time.time() - killed)
            lost = step - saved
            print(
                f"| rank {rank} of {arguments.gpus} in step {step + 1} | {ended - killed:.1f} s "
                f"| {totals[-1]:.1f} s (step {record['step']}) | {lost} |",
                flush=True,
            )
        process.terminate()
        process.wait(WAIT_S)
    print(f"| median | | {statistics.median(totals):.1f} s | |")


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def after_a_save(run_dir: Path, process: subprocess.Popen[bytes]) -> int:
    """Wait until a checkpoint is new and a step after it is trained; return that step."""
    before = newest_checkpoint(run_dir)

    def reached() -> int | None:
        last = records(run_dir)[-1:]
        step = int(last[0]["step"]) if last else 0
        return step if step > newest_checkpoint(run_dir) > before else None

    return wait_for(reached, process)


def newest_checkpoint(run_dir: Path) -> int:
    """Return the step of the newest complete checkpoint; 0: there is none."""
    found = sorted((run_dir / "checkpoints").glob("step_????????/manifest.json"))
    return int(found[-1].parent.name.removeprefix("step_")) if found else 0


def next_step(run_dir: Path, saved: int, since: float) -> dict[str, Any] | None:
    """Return the first record of the process that was started again."""
    last = records(run_dir)[-1:]
    path = run_dir / "metrics.jsonl"
    if last and last[0]["step"] > saved and path.stat().st_mtime > since:
        started = [e for e in lines(run_dir / "events.jsonl") if e["kind"] == "run_continues"]
        if started and started[-1]["step"] == saved:
            return last[0]
    return None


def records(run_dir: Path) -> list[dict[str, Any]]:
    return lines(run_dir / "metrics.jsonl")


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file of JSON that is being written."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def wait_for[T](found: Callable[[], T | None], process: subprocess.Popen[bytes]) -> T:
    """Wait until something is found, as long as the process lives."""
    until = time.monotonic() + WAIT_S
    while (value := found()) is None:
        if process.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"the run ended with {process.poll()}, or nothing came in {WAIT_S} s")
        time.sleep(0.02)
    return value


def rank_process(process: subprocess.Popen[bytes], rank: int) -> int:
    """Return the process of a rank: the command itself, or one that it has started."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        if one.environ().get("RANK") == str(rank) and "loopcoder" in " ".join(one.cmdline()):
            return one.pid
    return process.pid


if __name__ == "__main__":
    main()
