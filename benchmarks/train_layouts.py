"""Train the 7B two-loop model, nothing shrunk, in several layouts: speed, MFU and memory of each.

    python benchmarks/train_layouts.py --gpus 4
    python benchmarks/train_layouts.py --gpus 2 --only tp2_sp --precision fp8_tensorwise

Each layout is `loopcoder train` on the sample corpus with the vocabulary of the 7B model, packed
documents off, so that MFU counts what is computed. Medians over the steps after the fifth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

LAYOUTS: dict[int, dict[str, list[str]]] = {
    2: {
        "tp2_sp": ["parallel=tp2_sp"],
        "pp2 recompute": ["parallel=pp2", "parallel.recompute=full"],
        "dp2 recompute": ["parallel=dp_overlap", "parallel.recompute=full"],
    },
    4: {
        "dp2 tp2_sp": [
            "parallel=tp2_sp",
            *(f"parallel.overlap_{x}=true" for x in ("grad_reduce", "param_gather")),
        ],
        "tp4_sp": ["parallel=tp4_sp"],
        "tp2_sp_pp2": ["parallel=tp2_sp_pp2"],
        "dp4": ["parallel=dp_overlap"],
        "dp4 recompute": ["parallel=dp_overlap", "parallel.recompute=full"],
    },
}
RECORDED = ("step_time_s", "tokens_per_s_per_rank", "mfu_causal", "mfu_full", "data_wait_s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpus", type=int, choices=LAYOUTS, required=True)
    parser.add_argument("--only", nargs="+", help="names of layouts; all of them without it")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4, help="sequences per step")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("overrides", nargs="*", help="further overrides of the config")
    arguments = parser.parse_args()
    layouts = LAYOUTS[arguments.gpus]
    print("| layout | step | data wait | tokens/s/GPU | MFU causal / full | peak memory | loss |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for name in arguments.only or layouts:
        print(train(arguments, name, layouts[name]), flush=True)


def train(arguments: argparse.Namespace, name: str, overrides: list[str]) -> str:
    """Run one layout and return its row; a run that fails says so in its row."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder, "run")
        command = [
            *(sys.executable, "-m", "loopcoder", "train", "model=plt_7b", "model.num_loops=2"),
            *("model.vocab_size=76800", "data.build.tokenizer_vocab_size=4096"),
            *("data.seq_length=8192", "data.isolate_documents=false"),
            *(f"train.max_steps={arguments.steps}", f"train.global_batch_size={arguments.batch}"),
            "train.micro_batch_size=1",
            *("logging.interval=1", "logging.wandb=off", "logging.tensorboard=off"),
            *("logging.plots=false", "logging.progress=false"),
            *("eval.interval=null", "eval.at_end=false"),
            *("checkpoint.interval=null", "checkpoint.save_at_end=false"),
            *(f"precision={arguments.precision}", f"parallel.nproc_per_node={arguments.gpus}"),
            *(*overrides, *arguments.overrides, f"run_dir={run_dir}"),
        ]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            print(done.stdout[-3000:], file=sys.stderr)
            return f"| {name} | failed with exit code {done.returncode} | | | | | |"
        records = [
            json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()
        ]
    step, speed, causal, full, wait = (
        statistics.median(r[k] for r in records[5:]) for k in RECORDED
    )
    memory = max(r["memory_bytes"] for r in records) / 2**30
    return (
        f"| {name} | {step:.3f} s | {wait / step:.2%} | {speed:,.0f} | {causal:.1%} / {full:.1%} "
        f"| {memory:.1f} GiB | {records[0]['loss']:.3f} -> {records[-1]['loss']:.3f} |"
    )


if __name__ == "__main__":
    main()
