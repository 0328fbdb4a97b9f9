"""Train the 7B two-loop model, nothing shrunk, in several layouts: speed, MFU and memory of each.

    python benchmarks/train_layouts.py --gpus 4 --out layouts.jsonl
    python benchmarks/train_layouts.py --gpus 2 --only tp2_sp --precision fp8_tensorwise
    python benchmarks/train_layouts.py --gpus 4 --only dp4 -- model=plt_tiny precision=fp32

Each layout is `loopcoder train` on the sample corpus with the vocabulary of the 7B model, packed
documents off, so that MFU counts what is computed. Medians over the steps after the fifth. With
--out every row is a line of JSON, and the same command measures the rows that are not there; one
that would not end within --seconds is left for it (exit code 75).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measured import EXIT_MORE, QUIET, SEVEN_B, Deadline, Kept, Record, kill_family, lines

OVERLAPS = [f"parallel.overlap_{x}=true" for x in ("grad_reduce", "param_gather")]
RECOMPUTED = "parallel.recompute=full"
PP4 = ["parallel=pp2", "parallel.pp=4"]
LAYOUTS: dict[int, dict[str, list[str]]] = {
    2: {
        "tp2_sp": ["parallel=tp2_sp"],
        "pp2 recompute": ["parallel=pp2", RECOMPUTED],
        "dp2 recompute": ["parallel=dp_overlap", RECOMPUTED],
    },
    4: {
        "dp4": ["parallel=dp_overlap"],
        "dp2 tp2_sp": ["parallel=tp2_sp", *OVERLAPS],
        "tp2_sp_pp2": ["parallel=tp2_sp_pp2"],
        "pp4": PP4,
        "dp2 pp2": ["parallel=pp2"],
        "tp4_sp": ["parallel=tp4_sp"],
        "dp4 recompute": ["parallel=dp_overlap", RECOMPUTED],
    },
    8: {
        "dp8": ["parallel=dp_overlap"],
        "dp4 tp2_sp": ["parallel=tp2_sp", *OVERLAPS],
        "dp2 tp2_sp_pp2": ["parallel=tp2_sp_pp2", *OVERLAPS],
        "dp2 pp4": PP4,
        "dp4 pp2": ["parallel=pp2"],
    },
}
"""By GPUs, those first that are expected to win: what time there is goes to them."""
RECORDED = ("step_time_s", "tokens_per_s_per_rank", "mfu_causal", "mfu_full", "data_wait_s")
WARMUP_STEPS = 5
FIRST_GUESS_S = 240.0
"""Seconds of a layout, before any has been trained."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpus", type=int, choices=LAYOUTS, required=True)
    parser.add_argument("--only", nargs="+", help="names of layouts; all of them without it")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, help="sequences per step; default: 2 for each GPU")
    parser.add_argument("--precision", nargs="+", default=["bf16"])
    parser.add_argument("--out", type=Path, help="file of the results, lines of JSON")
    parser.add_argument("--seconds", type=float, default=560.0, help="end by then")
    parser.add_argument("overrides", nargs="*", help="further overrides of the config")
    arguments = parser.parse_args()
    arguments.batch = arguments.batch or 2 * arguments.gpus
    layouts = LAYOUTS[arguments.gpus]
    if unknown := set(arguments.only or ()) - set(layouts):
        parser.error(f"no layout {', '.join(unknown)}; there are {', '.join(layouts)}")
    if arguments.steps <= WARMUP_STEPS:
        parser.error(f"--steps: more than the {WARMUP_STEPS} that are left out")
    kept, deadline = Kept(arguments.out), Deadline(arguments.seconds)
    print("| layout | precision | step | data wait | tokens/s/GPU | MFU causal / full | memory |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    longest, codes = 0.0, []
    for name, precision in itertools.product(arguments.only or layouts, arguments.precision):
        key = key_of(arguments, name, precision)
        record = kept.find(**key)
        if record is None and deadline.left_s < (longest or FIRST_GUESS_S):
            codes.append(EXIT_MORE)
            continue
        if record is None:
            began = time.monotonic()
            found = train(arguments, name, precision, deadline)
            longest = max(longest, time.monotonic() - began)
            if isinstance(found, int):
                codes.append(found)
                continue
            record = kept.add(key | found)
        print(row(record), flush=True)
    print(f"\n{codes.count(EXIT_MORE)} left for the same command, {codes.count(1)} failed")
    return 1 if 1 in codes else EXIT_MORE if codes else 0


def key_of(arguments: argparse.Namespace, name: str, precision: str) -> Record:
    """Return what tells a row from all others."""
    return {
        "layout": name,
        "precision": precision,
        "gpus": arguments.gpus,
        "batch": arguments.batch,
        "steps": arguments.steps,
        "overrides": arguments.overrides,
    }


def train(
    arguments: argparse.Namespace, name: str, precision: str, deadline: Deadline
) -> Record | int:
    """Train in one layout; return what was measured, or an exit code: EXIT_MORE where the time was
    up, 1 where the run failed, which is told."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder, "run")
        command = [
            *(sys.executable, "-m", "loopcoder", "train", *SEVEN_B, *QUIET),
            "data.isolate_documents=false",
            *(f"train.max_steps={arguments.steps}", f"train.global_batch_size={arguments.batch}"),
            "train.micro_batch_size=1",
            *("checkpoint.interval=null", "checkpoint.save_at_end=false"),
            *(f"precision={precision}", f"parallel.nproc_per_node={arguments.gpus}"),
            *(*LAYOUTS[arguments.gpus][name], *arguments.overrides, f"run_dir={run_dir}"),
        ]
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait(deadline.left_s)
        except subprocess.TimeoutExpired:
            return EXIT_MORE
        finally:
            kill_family(process)
        if code:
            log_text = Path(folder, "log").read_text(errors="replace")
            print(f"{name}, {precision} ended with {code}:\n{log_text[-3000:]}", file=sys.stderr)
            return 1
        return measured(lines(run_dir / "metrics.jsonl"))


def measured(records: list[Record]) -> Record:
    """Return the medians of RECORDED over the steps that count (None: not known of this device),
    the most memory and the losses at both ends."""
    counted = records[WARMUP_STEPS:]
    found = {
        name: statistics.median(r[name] for r in counted) if name in counted[0] else None
        for name in RECORDED
    }
    return found | {
        "memory_bytes": max(r["memory_bytes"] for r in records),
        "losses": [records[0]["loss"], records[-1]["loss"]],
    }


def row(record: Record) -> str:
    """Return the row of a table."""
    step, speed, causal, full, wait = (record[name] for name in RECORDED)
    mfu = "" if causal is None else f"{causal:.1%} / {full:.1%}"
    return (
        f"| {record['layout']} | {record['precision']} | {step:.3f} s | {wait / step:.2%} "
        f"| {speed:,.0f} | {mfu} | {record['memory_bytes'] / 2**30:.1f} GiB |"
    )


if __name__ == "__main__":
    sys.exit(main())
