"""Steps of small models on a GPU against a plain PyTorch model with as many executed layers.

    python benchmarks/small_gpu.py                                      # every row, three rounds
    python benchmarks/small_gpu.py --shapes 14M --loops 1 --documents one --rounds 1 --seconds 60

The peer is the model of `peer_model.py` under torch.compile, with PyTorch's fused AdamW and bf16
autocast; it shares no code with the package. Ours with R = 2 has half the layers. Both train on the
same microbatches of 32 sequences of 1024 tokens, which come from pinned memory and are others in
every step; nothing is logged. `packed` has documents of mean length --mean-document in every
sequence, which the peer keeps apart with FlexAttention.

Each row is a process of its own. In it the peer, ours without and ours with CUDA graphs
(`train.cuda_graphs`) take turns, --steps steps at a time, as often as there are rounds. A time is
that between CUDA events around all steps of a turn, divided by their number. A ratio is the peer's
time over ours, above 1 where ours is faster: the median over the rounds, and their range. Memory is
what PyTorch reserves for a side beyond what the sides before it keep.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from measured import Deadline, commit, hardware

SHAPES = {
    "tiny": (2, 64, 128, 1),
    "14M": (6, 384, 1024, 3),
    "91M": (12, 768, 2048, 6),
    "300M": (24, 1024, 2816, 8),
}
"""Layers, width, width of the MLP, heads of 128; the vocabulary has 4096 ids. `tiny` is for tests,
with heads of 64."""
LISTED = ("14M", "91M", "300M")
VOCAB, ROWS, LENGTH, EOD = 4096, 32, 1024, 0
PREPARED, WARM_UP = 8, 40
"""Different steps, and steps before the first turn: each of the first is captured in every shape
that it has."""
SIDES = ("peer", "off", "on")
Step = Callable[[], Any]
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*LISTED])
    parser.add_argument("--loops", nargs="+", type=int, choices=(1, 2), default=[1, 2])
    parser.add_argument(
        "--documents", nargs="+", choices=("one", "packed"), default=["one", "packed"]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="of each model in a round")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=[*SIDES])
    parser.add_argument("--mean-document", type=int, default=1400, help="tokens, where packed")
    parser.add_argument("--rows", type=int, default=ROWS, help="sequences of a step")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a sequence")
    parser.add_argument(
        "--seconds", type=float, default=3600.0, help="no row and no turn begins later"
    )
    parser.add_argument("--json", type=Path, help="file that gets a line for each row")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # shape, R and documents, in one process
    arguments = parser.parse_args(argv)
    if arguments.row:
        shape, loops, documents = arguments.row.split("/")
        print(json.dumps(measure(arguments, shape, int(loops), documents)), flush=True)
        return 0
    deadline, rows, failed = Deadline(arguments.seconds), list[Row](), 0
    for name in product(arguments.shapes, arguments.loops, arguments.documents):
        if deadline.left_s <= 0:
            print(f"no time for {'/'.join(map(str, name))} and what follows", file=sys.stderr)
            break
        row = in_process("/".join(map(str, name)), deadline.left_s, argv)
        failed += row is None
        if row is not None:
            rows.append(row | {"commit": commit(), "hardware": hardware()})
            if arguments.json is not None:
                with arguments.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print_table(rows)
    return 1 if failed or not rows else 0


def in_process(name: str, seconds: float, argv: Sequence[str] | None) -> Row | None:
    """Measure a row in a process of its own; None: it failed, and has said why."""
    given = list(sys.argv[1:] if argv is None else argv)
    command = [sys.executable, __file__, *given, "--row", name, "--seconds", str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not found:
        print(f"{name} ended with {done.returncode}", file=sys.stderr)
        return None
    print(found[-1], file=sys.stderr, flush=True)
    row: Row = json.loads(found[-1])
    return row


def measure(arguments: argparse.Namespace, shape: str, loops: int, documents: str) -> Row:
    """Let the sides of a row take turns; return their milliseconds per step, by round."""
    import torch

    from loopcoder.backends import detect
    from loopcoder.config.schema import ParallelConfig
    from loopcoder.parallel import mcore

    deadline = Deadline(arguments.seconds)
    mcore.prepare()
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    mcore.start_processes()
    ranks = mcore.initialise(ParallelConfig(), seed=1)
    if ranks.device.type == "cuda":
        from loopcoder.train.graph import use_own_stream

        use_own_stream(ranks.device)
    config = config_of(shape, loops, arguments, detect())
    steps = prepared_steps(arguments, documents == "packed", ranks.device.type == "cuda")
    build = {"peer": peer_step, "off": eager_step, "on": captured_step}
    sides = [s for s in arguments.sides if s != "on" or ranks.device.type == "cuda"]
    running, memory = dict[str, Step](), dict[str, float]()
    for side in sides:
        before = held(ranks.device)
        running[side] = build[side](config, loops, steps, ranks)
        warm_up = min(WARM_UP, 2 * arguments.steps)
        timed(running[side], warm_up, ranks.device)
        memory[side] = (peak(ranks.device) - before) / 2**30
    found: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(arguments.rounds):
        if number and deadline.left_s <= 0:
            break
        for side in sides:
            found[side].append(timed(running[side], arguments.steps, ranks.device))
    losses = {side: round(float(step()), 4) for side, step in running.items()}
    mcore.shutdown()
    return {
        "shape": shape,
        "loops": loops,
        "documents": documents,
        "tokens": arguments.rows * arguments.length,
        "step_ms": {side: [round(x, 3) for x in times] for side, times in found.items()},
        "memory_gib": {side: round(x, 2) for side, x in memory.items()},
        "loss": losses,
        "torch": torch.__version__,
    }


def config_of(shape: str, loops: int, arguments: argparse.Namespace, backends: Any) -> Any:
    """Return the config of ours, whose layers run as often as the shape has layers."""
    from loopcoder.config.compose import compose
    from loopcoder.config.resolve import resolve

    layers, width, inner, heads = SHAPES[shape]
    overrides = [
        f"model.num_layers={layers // loops}",
        f"model.num_loops={loops}",
        f"model.hidden_size={width}",
        f"model.ffn_hidden_size={inner}",
        f"model.num_attention_heads={heads}",
        f"model.num_kv_heads={heads}",
        f"model.head_dim={64 if shape == 'tiny' else 128}",
        f"model.vocab_size={VOCAB}",
        f"data.seq_length={arguments.length}",
        f"train.global_batch_size={arguments.rows}",
        f"train.micro_batch_size={arguments.rows}",
        "train.max_steps=100000",
        "precision=bf16",
    ]
    return resolve(compose(overrides), backends)


def prepared_steps(arguments: argparse.Namespace, packed: bool, pin: bool) -> list[Any]:
    """Return the data of some steps, each one microbatch."""
    import torch

    from loopcoder.data.batch import make_batch

    generator, steps = torch.Generator().manual_seed(1), []
    shape = arguments.rows, arguments.length + 1
    ids_of_rows = torch.arange(arguments.rows)
    for number in range(PREPARED):
        ids = torch.randint(EOD + 1, VOCAB, shape, generator=generator)
        if packed:
            ids[torch.rand(shape, generator=generator) < 1 / arguments.mean_document] = EOD
        batch = make_batch(ids, ids_of_rows, ids_of_rows * 0, EOD, isolate_documents=packed)
        place = SimpleNamespace(stage=0), SimpleNamespace(step=1000 + number)
        batches = [batch.pin() if pin else batch]
        steps.append(SimpleNamespace(microbatches=batches, before=place[0], after=place[1]))
    return steps


def peer_step(config: Any, loops: int, steps: list[Any], ranks: Any) -> Step:
    """Build the peer's step: the plain model of `peer.py`, compiled."""
    from peer import build_optimizers, train_step
    from peer_model import Peer, initialise

    depth = config.model.num_layers * loops
    with ranks.device:
        peer = Peer(replace(config.model, num_layers=depth), VOCAB)
    initialise(peer, 1, config.model.init_std)
    if ranks.device.type == "cuda":
        peer.compile(dynamic=False)
    optimizers = build_optimizers(peer, config.optim, "adamw")
    turn = in_turn(steps)
    return lambda: train_step(peer, turn(), config, optimizers)


def eager_step(config: Any, loops: int, steps: list[Any], ranks: Any) -> Step:
    """Build ours, kernel by kernel: what a run does without graphs."""
    from loopcoder.optim.optimizer import update
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward

    state, turn = build_state(config, ranks, VOCAB), in_turn(steps)

    def step() -> Any:
        sums = forward_backward(state, turn().microbatches, 1)
        loss, tokens = sums.sum(1)
        update(state.optimizer, config.optim, config.optim.lr, tokens, loss=loss)
        return loss / tokens

    return step


def captured_step(config: Any, loops: int, steps: list[Any], ranks: Any) -> Step:
    """Build ours as CUDA graphs; what cannot be captured is an error."""
    from loopcoder.train.graph import CapturedStep
    from loopcoder.train.state import build_state

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    state, turn = build_state(config, ranks, VOCAB), in_turn(steps)
    captured = CapturedStep(state, config, 1, insists=True, say=say)

    def step() -> Any:
        sums, _, _ = captured(turn().microbatches, config.optim.lr)
        loss, tokens = sums.sum(1)
        return loss / tokens

    return step


def in_turn(steps: list[Any]) -> Callable[[], Any]:
    """Return a function that gives one step after the other, and begins again at the end."""
    number = -1

    def following() -> Any:
        nonlocal number
        number += 1
        return steps[number % len(steps)]

    return following


def timed(step: Step, count: int, device: Any) -> float:
    """Run some steps and return the milliseconds of one."""
    import torch

    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(count):
            step()
        return (time.perf_counter() - began) / count * 1000
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(count):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / count


def held(device: Any) -> int:
    """Return the bytes of a GPU that PyTorch has for tensors and graphs, once it has given back
    what nothing uses; 0 without a GPU."""
    import torch

    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


def peak(device: Any) -> int:
    """Return the bytes that PyTorch holds for what has run since `held`; 0 without a GPU."""
    import torch

    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def print_table(rows: list[Row]) -> None:
    print("| shape | R | documents | peer | off | on | off / peer | on / peer | memory of each |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        times = row["step_ms"]
        speeds = [speed(row["tokens"], times.get(side)) for side in SIDES]
        ratios = [ratio(times.get("peer"), times.get(side)) for side in SIDES[1:]]
        memory = " / ".join(f"{x:.1f}" for x in row["memory_gib"].values())
        what = row["shape"], str(row["loops"]), row["documents"]
        print(f"| {' | '.join([*what, *speeds, *ratios])} | {memory} GiB |")


def speed(tokens: int, times: list[float] | None) -> str:
    """Return tokens per second, by the median round."""
    return f"{tokens / statistics.median(times) * 1000:,.0f}" if times else ""


def ratio(theirs: list[float] | None, ours: list[float] | None) -> str:
    """Return the median of their time over ours, and the range over the rounds."""
    if not theirs or not ours:
        return ""
    each = [a / b for a, b in zip(theirs, ours, strict=True)]
    return f"{statistics.median(each):.3f} ({min(each):.3f} to {max(each):.3f})"


if __name__ == "__main__":
    sys.exit(main())
