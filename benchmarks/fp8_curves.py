"""Train a small two-loop model in bf16 and in every FP8 recipe; the curves must stay together.

    python benchmarks/fp8_curves.py --out docs/figures

All runs see the same data from the same weights, side by side on one GPU. Compared are the means of
the loss over 20 steps. Exit codes: 0 within 1%, 1 further apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from loss_compare import QUIET

RECIPES = ("bf16", "fp8_tensorwise", "fp8_blockwise")
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
    "train.micro_batch_size=8",
    "optim.lr=6e-4",
    "optim.min_lr=6e-5",
]
MEAN_OVER, ALLOWED = 20, 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the plot")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--precision", nargs="+", default=RECIPES, help="the first is the measure")
    parser.add_argument("overrides", nargs="*", help="further overrides of the config")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        losses = train_all(arguments, Path(folder))
    means = {p: moving_means(curve) for p, curve in losses.items()}
    measure, *others = means
    worst = {
        p: max(abs(a / b - 1) for a, b in zip(means[p], means[measure], strict=True))
        for p in others
    }
    print(f"| precision | loss, last {MEAN_OVER} steps | furthest from {measure} |")
    print("| --- | --- | --- |")
    for precision, mean in means.items():
        print(f"| {precision} | {mean[-1]:.4f} | {worst.get(precision, 0.0):.2%} |")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "fp8_curves.json").write_text(json.dumps(losses))
    draw(means, arguments.out / "fp8_curves.svg")
    return int(any(apart > ALLOWED for apart in worst.values()))


def train_all(arguments: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Train in all precisions at the same time; return the losses of each."""
    runs = {}
    for precision in arguments.precision:
        command = [sys.executable, "-m", "loopcoder", "train", *MODEL, *QUIET]
        command += [f"train.max_steps={arguments.steps}", f"precision={precision}"]
        command += ["parallel.nproc_per_node=1", f"run_dir={folder / precision}"]
        command += arguments.overrides
        log = open(folder / f"{precision}.log", "w")  # noqa: SIM115
        runs[precision] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    for precision, run in runs.items():
        if run.wait():
            raise SystemExit((folder / f"{precision}.log").read_text()[-3000:])
    return {
        p: [
            json.loads(line)["loss"]
            for line in (folder / p / "metrics.jsonl").read_text().splitlines()
        ]
        for p in runs
    }


def moving_means(curve: list[float]) -> list[float]:
    width = min(MEAN_OVER, len(curve))
    return [statistics.fmean(curve[i : i + width]) for i in range(len(curve) - width + 1)]


def draw(means: dict[str, list[float]], path: Path) -> None:
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
    curves.set_ylabel(f"loss, mean of {MEAN_OVER} steps (nats a token)")
    curves.legend(frameon=False)
    apart.set_ylabel("off by (%)")
    apart.set_xlabel("optimizer step")
    for axes in (curves, apart):
        axes.grid(alpha=0.3)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
