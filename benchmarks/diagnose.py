"""What a diagnosis costs: seconds of each part, and memory, with random weights and tokens.

    python benchmarks/diagnose.py                                   # 7B, R = 2, on a GPU
    python benchmarks/diagnose.py --model plt_tiny --precision fp32 --length 128 --samples 8

One sample in eight is measured by the costly measures too, as 64 of 500 are. Each part is timed
with the device waited for before and after it; the total is that of a run without these waits.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from typing import Any

from step import start_alone

PARTS = {
    "at_attention": "attention maps",
    "_compare_heads": "diversity of heads",
    "_read": "head",
    "_measure_state": "states",
    "_rank_states": "effective rank",
    "_finish_outputs": "exits",
}
"""Methods of `Capture`; each without those that it calls."""
ACCEPTED = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="plt_7b")
    parser.add_argument("--loops", type=int, default=2)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--document", type=int, default=1024, help="mean length of a document")
    parser.add_argument("--vocabulary", type=int, default=76800)
    arguments = parser.parse_args()
    ranks = start_alone()
    network, model = build(arguments, ranks)
    batches = list(draw(arguments, ranks.device))
    go_through(network, model, batches[:1], ranks, defaultdict(float))  # the first one warms up
    waited: dict[str, float] = defaultdict(float)
    go_through(network, model, batches, ranks, waited)
    seconds = go_through(network, model, batches, ranks, None)
    parts = sum(waited[name] for name in PARTS)
    waited["forward"] = waited.pop("all") - parts
    each = seconds / arguments.samples
    print(f"{arguments.samples} samples of {arguments.length} tokens: {seconds:.2f} s")
    print(f"{ACCEPTED} samples: {each * ACCEPTED:.0f} s; peak memory {peak(ranks.device):.1f} GiB")
    print("| part | s per sample |\n| --- | --- |")
    for name, took in sorted(waited.items(), key=lambda item: -item[1]):
        print(f"| {PARTS.get(name, name)} | {took / arguments.samples:.4f} |")


def build(arguments: argparse.Namespace, ranks: Any) -> tuple[Any, Any]:
    """Build a model with random weights, with a loop more than is run."""
    from loopcoder.config.compose import compose
    from loopcoder.diagnose.run import runnable
    from loopcoder.train.state import build_network

    config = compose(
        [
            f"model={arguments.model}",
            f"model.num_loops={arguments.loops}",
            f"precision={arguments.precision}",
            f"model.vocab_size={arguments.vocabulary}",
        ]
    )
    runs = runnable(config, arguments.loops)
    network, _ = build_network(runs, ranks, arguments.vocabulary)
    network.eval()
    return network, config.model


def draw(arguments: argparse.Namespace, device: Any) -> Any:
    """Yield batches of random tokens in documents, on the device, each with its subsets."""
    import torch

    from loopcoder.data.batch import make_batch
    from loopcoder.diagnose.capture import Subset

    generator = torch.Generator().manual_seed(1)
    rows, length = arguments.at_once, arguments.length
    for first in range(0, arguments.samples, rows):
        ids = torch.randint(1, arguments.vocabulary, (rows, length + 1), generator=generator)
        ids[torch.rand(ids.shape, generator=generator) < 1 / arguments.document] = 0
        numbers = torch.arange(first, first + rows)
        batch = make_batch(ids, numbers, torch.zeros_like(numbers), 0)
        order = torch.randperm(length, generator=generator)
        subset = Subset(order[:1024].sort().values.to(device), order[:64].sort().values.to(device))
        yield batch.to(device), [subset if int(n) % 8 == 0 else None for n in numbers]


def go_through(
    network: Any, model: Any, batches: Any, ranks: Any, waited: dict[str, float] | None
) -> float:
    """Measure all batches; return the seconds, and add those of the parts to `waited`."""
    from loopcoder.diagnose.capture import Capture
    from loopcoder.diagnose.passing import run_loops
    from loopcoder.diagnose.table import Table

    capture = Capture(model, model.num_loops, ranks, Table())
    if waited is not None:
        for name in PARTS:
            setattr(capture, name, timed(getattr(capture, name), name, waited, ranks.device))
    wait(ranks.device)
    began = time.perf_counter()
    for batch, subsets in batches:
        capture.begin(batch, 0, batch.sample_ids, batch.tokens * 0, subsets)
        run_loops(network, batch, model.num_loops + 1, capture, ranks)
        capture.end()
    wait(ranks.device)
    took = time.perf_counter() - began
    if waited is not None:
        waited["all"] += took
    return took


def timed(method: Any, name: str, waited: dict[str, float], device: Any) -> Any:
    """Return a method that adds its seconds, less those of parts that it calls."""

    def run(*args: Any) -> None:
        wait(device)
        inner = sum(waited[other] for other in PARTS if other != name)
        began = time.perf_counter()
        method(*args)
        wait(device)
        took = time.perf_counter() - began
        waited[name] += took - sum(waited[other] for other in PARTS if other != name) + inner

    return run


def wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def peak(device: Any) -> float:
    from loopcoder.train.window import peak_memory

    return peak_memory(device) / 2**30


if __name__ == "__main__":
    main()
