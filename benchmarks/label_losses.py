"""What losses by language and source cost a step: steps with and without them, by turns.

    python benchmarks/label_losses.py                               # on a GPU
    python benchmarks/label_losses.py --models plt_tiny --precision fp32 --sequences 4

Every step is a logged one: its sums are read back, as with logging.interval=1. Blocks of some steps
with and without alternate; a figure is the median of the blocks, a ratio that of the pairs, with
their quartiles; besides, what the sums take by themselves. The batch has documents of mean length
1024 in 100 languages of 8 sources.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from step import start_alone

LANGUAGES, SOURCES, MEAN_DOCUMENT = 100, 8, 1024
MODELS = {
    "plt_20m": ("model=plt_20m",),
    "plt_7b": ("model=plt_7b", "model.num_loops=2", "model.num_layers=2"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=[*MODELS])
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--sequences", type=int, default=1, help="of a microbatch")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=76800)
    parser.add_argument("--most", type=int, default=64, help="logging.max_labels")
    parser.add_argument("--steps", type=int, default=10, help="of a block")
    parser.add_argument("--pairs", type=int, default=20)
    arguments = parser.parse_args()
    ranks = start_alone()
    print("| model | without | with | ratio (quartiles of the pairs) | sums alone |")
    print("| --- | --- | --- | --- | --- |")
    for model in arguments.models:
        without, with_them, ratios = measure(model, arguments, ranks)
        low, middle, high = statistics.quantiles(ratios, n=4)
        alone = sums_alone(arguments, ranks)
        print(
            f"| {model} | {without:.2f} ms | {with_them:.2f} ms "
            f"| {middle:.4f} ({low:.4f} to {high:.4f}) | {alone:.3f} ms, {alone / without:.2%} |",
            flush=True,
        )


def measure(
    model: str, arguments: argparse.Namespace, ranks: Any
) -> tuple[float, float, list[float]]:
    """Return milliseconds of a step without and with the sums, and the ratio of every pair."""
    from loopcoder.train.labels import LabelLosses

    by_label = LabelLosses(groups(arguments.most), ranks.device)
    step = build(model, arguments, ranks)
    for _ in range(4):
        step(by_label)
    times: dict[bool, list[float]] = {False: [], True: []}
    for pair in range(arguments.pairs):
        for on in (False, True) if pair % 2 else (True, False):
            began = time.perf_counter()
            for _ in range(arguments.steps):
                step(by_label if on else None)
            times[on].append((time.perf_counter() - began) / arguments.steps * 1e3)
    ratios = [b / a for a, b in zip(times[False], times[True], strict=True)]
    return statistics.median(times[False]), statistics.median(times[True]), ratios


def sums_alone(arguments: argparse.Namespace, ranks: Any) -> float:
    """Return the milliseconds that the sums of a step take by themselves, with their reading back:
    the most that they can add to a step, and without the noise of steps."""
    import torch

    from loopcoder.train.labels import LabelLosses

    by_label = LabelLosses(groups(arguments.most), ranks.device)
    shape = arguments.sequences, arguments.length
    loss, mask = (torch.ones(shape, device=ranks.device) for _ in range(2))
    labels = torch.randint(0, LANGUAGES * SOURCES, shape, device=ranks.device)

    def once() -> float:
        began = time.perf_counter()
        by_label.add(loss, mask, labels)
        by_label.fields("loss")
        return (time.perf_counter() - began) * 1e3

    return statistics.median([once() for _ in range(220)][20:])


def groups(most: int) -> list[Any]:
    """Name languages and sources of made-up labels, one for each language of each source."""
    from loopcoder.train.labels import Groups

    labels = [(i % LANGUAGES, i // LANGUAGES) for i in range(LANGUAGES * SOURCES)]
    names = [f"language {i}" for i in range(min(most, LANGUAGES))] + ["other"]
    return [
        Groups("language", tuple(names), tuple(min(a, len(names) - 1) for a, _ in labels)),
        Groups("source", tuple(f"source {i}" for i in range(SOURCES)), tuple(b for _, b in labels)),
    ]


def build(model: str, arguments: argparse.Namespace, ranks: Any) -> Callable[[Any], None]:
    """Build a logged step of the package's own train loop."""
    import torch

    from loopcoder.backends import detect
    from loopcoder.config.compose import compose
    from loopcoder.config.resolve import resolve
    from loopcoder.data.batch import make_batch
    from loopcoder.optim.optimizer import update
    from loopcoder.train.measures import Measures
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward

    vocabulary, rows = arguments.vocabulary, arguments.sequences
    overrides = [*MODELS.get(model, (f"model={model}",)), f"precision={arguments.precision}"]
    config = resolve(compose([*overrides, f"model.vocab_size={vocabulary}"]), detect())
    state = build_state(config, ranks, vocabulary)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, vocabulary, (rows, arguments.length + 1), generator=generator)
    ids[torch.rand(ids.shape, generator=generator) < 1 / MEAN_DOCUMENT] = 0
    of_document = torch.randint(0, LANGUAGES * SOURCES, (ids.numel(),), generator=generator)
    labels = of_document[(ids[:, :-1] == 0).flatten().cumsum(0)].view(rows, -1)
    zeros = torch.zeros(rows, dtype=torch.long)
    batch = make_batch(ids, zeros, zeros, 0, label_ids=labels)
    batch = batch.pin() if ranks.device.type == "cuda" else batch

    def step(by_label: Any) -> None:
        sums = forward_backward(state, [batch], 1, Measures(by_label=by_label))
        norm = update(state.optimizer, config.optim, 1e-4, sums[1].sum())
        sums.tolist()
        if by_label is not None:
            by_label.fields("loss")
        norm.item()

    return step


if __name__ == "__main__":
    main()
