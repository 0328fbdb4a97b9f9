"""How long a killed run takes to its next step, what it loses, and how long saves hold it up.

    python benchmarks/restart.py                                  # 7B width, 2 layers, on one GPU
    python benchmarks/restart.py --gpus 8 --layers 14 --kills 10 --folder /dev/shm/restarts \
        --out restart.jsonl -- parallel=dp_overlap                # the 7B model
    python benchmarks/restart.py --gpus 2 -- model=plt_tiny data.seq_length=128   # without a GPU

First some saves of an undisturbed run: by how much the steps beside a save are longer than a median
one, in all. Then one rank of `loopcoder train`, drawn at random, is killed (SIGKILL) at a random
moment of the next one and a half intervals between checkpoints; the others notice and end, and the
same command starts again at once. The clock runs from the kill to the first step after the
checkpoint that is logged; steps after it that had been trained before are lost.

With --folder and --out the same command goes on where it was within --seconds (exit code 75).
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from measured import EXIT_MORE, QUIET, SEVEN_B, Deadline, Kept, Record, kill_family, lines

FIRST_GUESS_S = 150.0
"""Seconds from one kill to the next, before any was measured."""
SKIPPED_STEPS = 3
"""Of a process: they compile and warm up."""


class Late(Exception):
    """The time is up."""


class Run:
    """A run that is killed and started again."""

    def __init__(self, command: list[str], run_dir: Path, deadline: Deadline):
        self._command, self.run_dir, self.deadline = command, run_dir, deadline
        self.started_s = 0.0
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        self.started_s = time.time()
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        return self.process

    def records(self) -> list[Record]:
        """Return the records of steps of the process that runs."""
        found = lines(self.run_dir / "metrics.jsonl")
        return [r for r in found if "loss" in r and seconds_of(r) > self.started_s]

    def events(self, kind: str) -> list[Record]:
        """Return the events of a kind of the process that runs."""
        found = lines(self.run_dir / "events.jsonl")
        return [e for e in found if e["kind"] == kind and seconds_of(e) > self.started_s]

    def wait_for[T](self, found: Callable[[], T | None]) -> T:
        """Wait until something is found, as long as the run lives and there is time."""
        while (value := found()) is None:
            if self.deadline.left_s == 0:
                raise Late
            if (code := self.process.poll()) is not None:
                raise SystemExit(f"the run ended by itself, with {code}")
            time.sleep(0.02)
        return value

    def first_step(self) -> Record:
        """Wait for the first step of this process."""
        return self.wait_for(lambda: next(iter(self.records()), None))

    def wait_for_step(self, step: int) -> Record:
        """Wait until a step is logged; return the last that is."""

        def reached() -> Record | None:
            last = self.records()[-1:]
            return last[0] if last and last[0]["step"] >= step else None

        return self.wait_for(reached)

    def kill_rank(self, rank: int) -> float:
        """Kill a rank and wait for the end of all; return when it was killed."""
        killed_s = time.time()
        os.kill(rank_process(self.process, rank), signal.SIGKILL)
        try:
            self.process.wait(self.deadline.left_s)
        except subprocess.TimeoutExpired:
            raise Late from None
        return killed_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpus", type=int, default=1, help="processes")
    parser.add_argument("--layers", type=int, default=2, help="of the 7B model, which has 14")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--saves", type=int, default=3, help="of the undisturbed run")
    parser.add_argument("--interval", type=int, default=20, help="steps between checkpoints")
    parser.add_argument("--folder", type=Path, help="of the run, which stays; default: temporary")
    parser.add_argument("--out", type=Path, help="file of the results, lines of JSON")
    parser.add_argument("--seconds", type=float, default=560.0, help="end by then")
    parser.add_argument("overrides", nargs="*", help="further overrides of the config")
    arguments = parser.parse_args()
    if arguments.saves < 1 or arguments.kills < 1:
        parser.error("--saves and --kills: at least 1")
    if arguments.out and not arguments.folder:
        parser.error("--out: with --folder, from which the next command goes on")
    deadline, kept = Deadline(arguments.seconds), Kept(arguments.out)
    with tempfile.TemporaryDirectory() as temporary:
        run_dir = (arguments.folder or Path(temporary)) / "run"
        run = Run(command_of(arguments, run_dir), run_dir, deadline)
        try:
            measure(arguments, run, kept)
        except Late:
            pass
        finally:
            kill_family(run.process)
    found = of_this(arguments, kept)
    print(table(found))
    return 0 if is_done(arguments, found) else EXIT_MORE


def command_of(arguments: argparse.Namespace, run_dir: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "loopcoder", "train", *SEVEN_B, *QUIET),
        f"model.num_layers={arguments.layers}",
        *(f"checkpoint.interval={arguments.interval}", "checkpoint.keep=1"),
        *("checkpoint.async_save=true", "train.max_steps=100000"),
        *(f"train.global_batch_size={2 * arguments.gpus}", "train.micro_batch_size=1"),
        f"parallel.nproc_per_node={arguments.gpus}",
        *(*arguments.overrides, f"run_dir={run_dir}"),
    ]


def measure(arguments: argparse.Namespace, run: Run, kept: Kept) -> None:
    """Measure what is not on record: saves, then kills."""
    key, longest_s = key_of(arguments), FIRST_GUESS_S
    if not any("saves" in r for r in of_this(arguments, kept)):
        run.wait_for(
            lambda: len(run.events("checkpoint_saved")) >= arguments.saves or None,
        )
        run.wait_for_step(run.records()[-1]["step"] + 1)  # beside which the last save ended
        kept.add(key | {"saves": stalls(run.records(), run.events("checkpoint_saved"))})
    done = sum("kill" in r for r in of_this(arguments, kept))
    for number in range(done, arguments.kills):
        if run.deadline.left_s < longest_s:
            raise Late
        began = time.monotonic()
        kept.add(key | {"kill": number} | killed_once(arguments, run))
        took_s = time.monotonic() - began
        longest_s = took_s if number == done else max(longest_s, took_s)


def killed_once(arguments: argparse.Namespace, run: Run) -> Record:
    """Kill a rank at a random moment, start again, and say how long it took."""
    draw = random.SystemRandom()
    rank, delay = draw.randrange(arguments.gpus), draw.uniform(0, 1.5 * arguments.interval)
    first = run.first_step()
    last = run.wait_for_step(first["step"] + int(delay))
    time.sleep(delay % 1 * last["step_time_s"])
    step = run.records()[-1]["step"]
    killed_s = run.kill_rank(rank)
    ended_s = time.time()
    run.start()
    next_step = run.first_step()
    resumed = run.events("run_continues")[-1]["step"]
    return {
        "rank": rank,
        "step": step,
        "ended_s": round(ended_s - killed_s, 2),
        "restart_s": round(seconds_of(next_step) - killed_s, 2),
        "from_step": resumed,
        "steps_lost": step - resumed,
        "step_s": last["step_time_s"],
    }


def stalls(records: list[Record], saved: list[Record]) -> list[Record]:
    """Return how long every save held training up: the seconds of the steps beside it beyond as
    many median steps that had none beside them.

    Args:
        records: Of every step of one process.
        saved: Events, each of a save that began after its `step`.
    """
    took = {
        after["step"]: seconds_of(after) - seconds_of(before)
        for before, after in itertools.pairwise(records)
    }
    beside = {}
    for event in saved:
        begun = [r for r in records if r["step"] > event["step"]]
        during = [r["step"] for r in begun if seconds_of(r) <= seconds_of(event)]
        beside[event["step"]] = [r["step"] for r in begun[: len(during) + 1] if r["step"] in took]
    busy = {step for steps in beside.values() for step in steps}
    first = records[0]["step"] + SKIPPED_STEPS
    median = statistics.median(s for step, s in took.items() if step >= first and step not in busy)
    return [
        {
            "step": event["step"],
            "bytes": event["bytes"],
            "seconds": event["seconds"],
            "step_s": median,
            "stall_s": sum(took[s] for s in beside[event["step"]])
            - len(beside[event["step"]]) * median,
        }
        for event in saved
    ]


def key_of(arguments: argparse.Namespace) -> Record:
    """Return what tells these measurements from others of the same file."""
    names = ("gpus", "layers", "interval", "overrides")
    return {name: getattr(arguments, name) for name in names}


def of_this(arguments: argparse.Namespace, kept: Kept) -> list[Record]:
    key = key_of(arguments)
    return [r for r in kept.records if key.items() <= r.items()]


def is_done(arguments: argparse.Namespace, found: list[Record]) -> bool:
    return any("saves" in r for r in found) and sum("kill" in r for r in found) >= arguments.kills


def table(found: list[Record]) -> str:
    """Return what was measured as tables."""
    out = [
        "| save | written | stall | of a step | of an interval |",
        "| --- | --- | --- | --- | --- |",
    ]
    for record in found:
        for save in record.get("saves", []):
            of_step = save["stall_s"] / save["step_s"]
            out.append(
                f"| {save['bytes'] / 1e9:.1f} GB | in {save['seconds']:.1f} s "
                f"| {save['stall_s']:.3f} s | {of_step:.1%} | {of_step / record['interval']:.2%} |"
            )
    out += ["", "| kill | all ended after | next step after | steps lost |"]
    out += ["| --- | --- | --- | --- |"]
    kills = [r for r in found if "kill" in r]
    for r in kills:
        out.append(
            f"| rank {r['rank']} of {r['gpus']} in step {r['step'] + 1} | {r['ended_s']:.1f} s "
            f"| {r['restart_s']:.1f} s | {r['steps_lost']} |"
        )
    if kills:
        middle, lost = (statistics.median(r[k] for r in kills) for k in ("restart_s", "steps_lost"))
        out.append(f"| median of {len(kills)} | | {middle:.1f} s | {lost:g} |")
    return "\n".join(out)


def seconds_of(record: dict[str, Any]) -> float:
    """Return when something was recorded, in seconds since the epoch."""
    return datetime.fromisoformat(record["time"]).timestamp()


def rank_process(process: subprocess.Popen[bytes], rank: int) -> int:
    """Return the process of a rank: the command itself, or one that it has started."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        if one.environ().get("RANK") == str(rank) and "loopcoder" in " ".join(one.cmdline()):
            return one.pid
    return process.pid


if __name__ == "__main__":
    sys.exit(main())
