"""A sweep of loop counts with a point on each GPU, killed in the middle and continued.

    python benchmarks/sweep_killed.py --out sweep_killed.jsonl               # on four GPUs
    python benchmarks/sweep_killed.py --out sweep_killed.jsonl -- seed=1,2   # on eight
    python benchmarks/sweep_killed.py --steps 60 -- model=plt_tiny sweep.at_once=2   # without a GPU

`loopcoder sweep model.num_loops=1,2,3,4` runs twice: once undisturbed, and once killed (SIGKILL,
all of its processes, as when the machine dies) as soon as every point that runs is past a
checkpoint; then the same command goes on. Runs are deterministic, so that every loss of the
continued sweep has to be that of the undisturbed one, bit for bit; points that ran at the same time
have to have had GPUs of their own. Exit code 1: something of this is not so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from measured import QUIET, Deadline, Kept, Record, hardware, kill_family, lines

COUNTS = (1, 2, 3, 4)
POINTS = f"model.num_loops={','.join(map(str, COUNTS))}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, help="file of the result, lines of JSON")
    parser.add_argument("--folder", type=Path, help="of both sweeps; default: a temporary one")
    parser.add_argument("--seconds", type=float, default=560.0, help="fail after that")
    parser.add_argument("overrides", nargs="*", help="further overrides of the sweep")
    arguments = parser.parse_args()
    deadline = Deadline(arguments.seconds)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        began = time.monotonic()
        finish(command_of(arguments, whole), deadline)
        whole_s = time.monotonic() - began
        command = command_of(arguments, killed)
        at_kill = kill_in_the_middle(command, killed, deadline)
        began = time.monotonic()
        finish(command, deadline)
        result = compared(whole, killed, at_kill, on_gpus=hardware() != "CPU") | {
            "steps": arguments.steps,
            "overrides": arguments.overrides,
            "undisturbed_s": round(whole_s, 1),
            "continued_s": round(time.monotonic() - began, 1),
        }
    print(json.dumps(Kept(arguments.out).add(result), indent=2))
    return 1 if result["faults"] else 0


def command_of(arguments: argparse.Namespace, folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "loopcoder", "sweep", POINTS, "model=plt_20m", *QUIET),
        *("train.deterministic=true", "parallel.nproc_per_node=1"),
        *(f"train.max_steps={arguments.steps}", f"checkpoint.interval={arguments.steps // 5}"),
        *(*arguments.overrides, f"run_dir={folder}"),
    ]


def finish(command: list[str], deadline: Deadline) -> None:
    """Run a sweep to its end."""
    process = subprocess.Popen(command, stdout=sys.stderr)
    try:
        code = process.wait(deadline.left_s)
    except subprocess.TimeoutExpired:
        raise SystemExit("the time was up before the sweep ended: more --seconds") from None
    finally:
        kill_family(process)
    if code:
        raise SystemExit(f"the sweep ended with {code}")


def kill_in_the_middle(command: list[str], folder: Path, deadline: Deadline) -> list[Record]:
    """Start a sweep, and kill it once all points that run are past a checkpoint of their own;
    return for every point the last step then, and the GPUs that it had."""
    process = subprocess.Popen(command, stdout=sys.stderr)
    try:
        while True:
            if process.poll() is not None or deadline.left_s == 0:
                raise SystemExit("there was no moment to kill the sweep: more --steps or --seconds")
            gpus = gpus_of_points(process)
            states = [state_of(folder / name, gpus[name]) for name in sorted(gpus)]
            if states and all(0 < s["saved"] < s["step"] for s in states):
                return states
            time.sleep(0.05)
    finally:
        kill_family(process)


def gpus_of_points(process: subprocess.Popen[bytes]) -> dict[str, str]:
    """Return which GPUs the points that run see, by the names of their folders."""
    found = {}
    for child in psutil.Process(process.pid).children():
        try:
            folders = [a for a in child.cmdline() if a.startswith("run_dir=")]
            environ = child.environ()
        except psutil.Error:  # it ends just now
            continue
        if folders:
            name = Path(folders[-1].removeprefix("run_dir=").strip("'\"")).name
            found[name] = environ.get("CUDA_VISIBLE_DEVICES", "")
    return found


def state_of(run_dir: Path, gpus: str) -> Record:
    """Return how far a point is."""
    saves = [e["step"] for e in lines(run_dir / "events.jsonl") if e["kind"] == "checkpoint_saved"]
    steps = [r["step"] for r in lines(run_dir / "metrics.jsonl") if "loss" in r]
    return {
        "point": run_dir.name,
        "gpus": gpus,
        "step": max(steps, default=0),
        "saved": max(saves, default=0),
    }


def compared(whole: Path, killed: Path, at_kill: list[Record], *, on_gpus: bool) -> Record:
    """Return how the points continued, and what of it is not as it has to be (`faults`)."""
    faults = []
    of_point = {state["point"]: state for state in at_kill}
    gpus = [state["gpus"] for state in at_kill]
    if on_gpus and len(set(gpus)) < len(gpus):
        faults.append(f"points that ran at a time had the GPUs {gpus}")
    found = []
    for name in sorted(p.parent.name for p in whole.glob("*/metrics.jsonl")):
        expected, got = (losses(folder / name) for folder in (whole, killed))
        differ = sum(expected.get(s) != got.get(s) for s in expected.keys() | got.keys())
        events = lines(killed / name / "events.jsonl")
        resumed = [e["step"] for e in events if e["kind"] == "run_continues"]
        if differ:
            faults.append(f"{name}: {differ} of {len(expected)} losses differ")
        if name in of_point and not (resumed and resumed[0] >= of_point[name]["saved"]):
            faults.append(f"{name}: started again at {resumed}, not from its checkpoint")
        found.append({"point": name, "at_kill": of_point.get(name), "resumed": resumed})
    if len(found) < len(COUNTS) or not all(losses(whole / p["point"]) for p in found):
        faults.append(f"only {[p['point'] for p in found]} were trained")
    if lost := sorted(of_point.keys() - {point["point"] for point in found}):
        faults.append(f"{lost} ran in the sweep that was killed only")
    return {"points": found, "faults": faults}


def losses(run_dir: Path) -> dict[int, float]:
    """Return the loss of every step; one that was trained twice has its last."""
    return {r["step"]: r["loss"] for r in lines(run_dir / "metrics.jsonl") if "loss" in r}


if __name__ == "__main__":
    sys.exit(main())
