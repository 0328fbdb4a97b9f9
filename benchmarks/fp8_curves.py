"""Train a small two-loop model in bf16 and in every FP8 recipe; the curves must stay together.

    python benchmarks/fp8_curves.py --out docs/figures
    python benchmarks/fp8_curves.py --out DIR -- model.num_loops=1 model.num_layers=12

All runs of a seed see the same data from the same weights, side by side on the GPUs there are.
Compared are the means of the loss over 20 steps and over all seeds: one run leaves a plateau a few
steps earlier or later than the next for no better reason than rounding. How much that is shows
`bf16 again`, which is bf16 in half the micro-batch: the same sums in another order.
Exit codes: 0 within 1%, 1 further apart.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from measured import UNSAVED

AGAIN = "bf16 again"
PRECISIONS = ("bf16", AGAIN, "fp8_tensorwise", "fp8_blockwise")
MICRO_BATCH = 8
MODEL = [
    "model=plt_tiny",
    "model.num_loops=2",
    "model.num_layers=6",
    "model.hidden_size=512",
    "model.ffn_hidden_size=1536",
    "model.num_attention_heads=8",
    "model.num_kv_heads=4",
    "model.head_dim=64",
    "model.window=64",
    "model.init_std=0.044",  # 1 / sqrt(width)
    "data.seq_length=1024",
    "train.global_batch_size=16",
    "optim.lr=6e-4",
    "optim.min_lr=6e-5",
    "parallel.nproc_per_node=1",
]
MEAN_OVER, ALLOWED = 20, 0.01
RUNS_A_GPU = 6
"""At the same time; each takes up to 10 GB."""
Curve = list[float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the plot")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument(
        "--precision", nargs="+", default=PRECISIONS, help="the first is the measure"
    )
    parser.add_argument("overrides", nargs="*", help="further overrides of the config")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        losses = train_all(arguments, Path(folder))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "fp8_curves.json").write_text(json.dumps(losses))
    seeds = {p: [moving_means(curve) for curve in curves] for p, curves in losses.items()}
    means = {
        p: [statistics.fmean(x) for x in zip(*curves, strict=True)] for p, curves in seeds.items()
    }
    measure = arguments.precision[0]
    columns = f"furthest from {measure} | at the end | furthest, single seeds"
    print(f"| precision | loss, last {MEAN_OVER} steps | {columns} |")
    print("| --- | --- | --- | --- | --- |")
    for precision, mean in means.items():
        single = [furthest(a, b) for a, b in zip(seeds[precision], seeds[measure], strict=True)]
        print(
            f"| {precision} | {mean[-1]:.4f} | {furthest(mean, means[measure]):.2%} "
            f"| {mean[-1] / means[measure][-1] - 1:+.2%} | {min(single):.2%} to {max(single):.2%} |"
        )
    draw(means, arguments.out / "fp8_curves.svg")
    return int(any(furthest(mean, means[measure]) > ALLOWED for mean in means.values()))


def train_all(arguments: argparse.Namespace, folder: Path) -> dict[str, list[Curve]]:
    """Train all precisions from all seeds; return the losses of each step."""
    places = visible_gpus() * RUNS_A_GPU
    free: queue.Queue[str] = queue.Queue()
    for gpu in places:
        free.put(gpu)

    def train(run: tuple[str, int]) -> Curve:
        gpu = free.get()
        try:
            return losses_of(*run, gpu, arguments, folder)
        finally:
            free.put(gpu)

    runs = [(p, seed) for seed in range(arguments.seeds) for p in arguments.precision]
    with ThreadPoolExecutor(len(places)) as pool:
        curves = dict(zip(runs, pool.map(train, runs), strict=True))
    return {p: [curves[p, seed] for seed in range(arguments.seeds)] for p in arguments.precision}


def losses_of(
    precision: str, seed: int, gpu: str, arguments: argparse.Namespace, folder: Path
) -> Curve:
    run_dir = folder / f"{precision.replace(' ', '_')}_{seed}"
    micro_batch = MICRO_BATCH // 2 if precision == AGAIN else MICRO_BATCH
    command = [
        *(sys.executable, "-m", "loopcoder", "train", *MODEL, *UNSAVED),
        *(f"train.max_steps={arguments.steps}", f"precision={precision.removesuffix(' again')}"),
        *(f"train.micro_batch_size={micro_batch}", f"seed={seed}"),
        *(f"run_dir={run_dir}", *arguments.overrides),
    ]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu},
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{precision}, seed {seed}:\n{done.stdout[-3000:]}")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def visible_gpus() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
    return gpus or sys.exit("there is no GPU")


def moving_means(curve: Curve) -> Curve:
    width = min(MEAN_OVER, len(curve))
    return [statistics.fmean(curve[i : i + width]) for i in range(len(curve) - width + 1)]


def furthest(curve: Curve, measure: Curve) -> float:
    return max(abs(a / b - 1) for a, b in zip(curve, measure, strict=True))


def draw(means: dict[str, Curve], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (curves, apart) = pyplot.subplots(
        2, 1, figsize=(7, 6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    measure = next(iter(means.values()))
    for precision, mean in means.items():
        steps = range(MEAN_OVER, MEAN_OVER + len(mean))
        curves.plot(steps, mean, label=f"{precision}: {mean[-1]:.4f}", linewidth=1.3)
        difference = [100 * (a / b - 1) for a, b in zip(mean, measure, strict=True)]
        apart.plot(steps, difference, linewidth=1.3)
    curves.set_ylabel(f"loss, mean of {MEAN_OVER} steps (nats per token)")
    curves.legend(frameon=False)
    apart.set_ylabel("off by (%)")
    apart.set_xlabel("optimizer step")
    for axes in (curves, apart):
        axes.grid(alpha=0.3)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
