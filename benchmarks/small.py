"""Speed of small models against a plain PyTorch model with as many executed layers.

    python benchmarks/small.py --cpu                        # plt_tiny as `make train` trains it
    python benchmarks/small.py --cpu --loops 1 -- train.micro_batch_size=2

Ours is `loopcoder train` itself: its data, its logging, its optimizer. Before each of its steps the
model of `peer_model.py` trains one on the same batch in the same process, so that whatever else the
machine does meets both. Peer and package share no code; its AdamW is PyTorch's fused one.

A ratio is the peer's time over ours, above 1 where ours is faster. One is taken of every ten steps
in a row, two of which are logged; the table has median and quartiles. CPU time is that of all
threads of the process: on a machine that others use it says more than wall time. Operators are
those that PyTorch's profiler sees in a step that is not logged, called by others or not.
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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

WARM_UP = 20
"""Steps that are not counted."""

BLOCK = 10
"""Steps that a ratio is taken of."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cpu", action="store_true", required=True, help="without a GPU")
    parser.add_argument("--loops", type=int, nargs="+", default=[2, 1], help="R of our model")
    parser.add_argument("--steps", type=int, default=200, help="counted in each round")
    parser.add_argument("--rounds", type=int, default=3, help="processes one after the other")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch, in both")
    parser.add_argument("--compile", action="store_true", help="torch.compile the peer")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)  # of a single process
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.steps < BLOCK or arguments.steps // BLOCK * arguments.rounds < 2:
        parser.error(
            f"a ratio is of {BLOCK} steps, and quartiles are of two ratios: --steps {2 * BLOCK}"
        )
    if arguments.out is not None:
        return measure(arguments)
    rounds: dict[int, list[dict[str, Any]]] = {loops: [] for loops in arguments.loops}
    for _ in range(arguments.rounds):
        for loops, found in rounds.items():
            found.append(in_process(arguments, loops))
    print_table(rounds)
    return 0


def in_process(arguments: argparse.Namespace, loops: int) -> dict[str, Any]:
    """Measure one R in a process of its own."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--cpu", "--loops", str(loops), "--out", str(out)]
        command += ["--steps", str(arguments.steps), *["--compile"] * arguments.compile]
        env = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(
            [*command, "--", *arguments.overrides], env=env, stdout=sys.stderr, check=True
        )
        result: dict[str, Any] = json.loads(out.read_text())
    return result


@dataclass
class Clock:
    """Wall and CPU seconds of steps."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    _began: tuple[float, float] | None = None

    def start(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Count what has passed since `start`, if that was called."""
        if self._began is not None:
            self.wall.append(time.perf_counter() - self._began[0])
            self.cpu.append(time.process_time() - self._began[1])


def measure(arguments: argparse.Namespace) -> int:
    """Run `loopcoder train` with the peer between its steps, and write what was found."""
    from peer import build_optimizers, train_step
    from peer_model import Peer, initialise

    from loopcoder.cli import train
    from loopcoder.train import world

    ours, plain, found = Clock(), Clock(), dict[str, Any]()
    last = WARM_UP + arguments.steps

    class Paired(world.Run):
        """A run in which the peer trains first on every batch."""

        def _train(self) -> None:
            config = self.config
            depth = config.model.num_layers * config.model.num_loops
            self.peer = Peer(replace(config.model, num_layers=depth), self.vocab_size)
            initialise(self.peer, config.seed, config.model.init_std)
            if arguments.compile:
                self.peer.compile(dynamic=False)
            self.optimizers = build_optimizers(self.peer, config.optim, "adamw")
            super()._train()

        def _step(self, data: Any, logged: bool) -> Any:
            ours.stop()
            theirs = partial(train_step, self.peer, data, self.config, self.optimizers)
            own = partial(super()._step, data, logged)
            if data.after.step > last:
                found["operators"] = operators(own), operators(theirs)
                found["tokens"] = data.microbatches[0].tokens.numel() * len(data.microbatches)
                return self.result
            plain.start()
            theirs()
            plain.stop()
            ours.start()
            self.result = own()
            return self.result

    world.Run = Paired  # type: ignore[misc]
    with TemporaryDirectory() as folder:
        code = train.run(
            [
                f"model.num_loops={arguments.loops[0]}",
                f"train.max_steps={last + 1}",
                f"logging.interval={BLOCK // 2}",
                *("eval.interval=null", "eval.at_end=false"),
                *("checkpoint.interval=null", "checkpoint.save_at_end=false"),
                f"run_dir={folder}",
                *arguments.overrides,
            ]
        )
    found["ours"], found["plain"] = ([c.wall[WARM_UP:], c.cpu[WARM_UP:]] for c in (ours, plain))
    arguments.out.write_text(json.dumps(found))
    return code


def operators(run: Callable[[], Any]) -> int:
    """Count the operators of PyTorch that a call runs."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    return sum(event.name.startswith("aten::") for event in profiled.events())


def print_table(rounds: dict[int, list[dict[str, Any]]]) -> None:
    print("| R | plain, tokens/s | ours | ratio | by CPU time | operators, plain | ours |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for loops, found in rounds.items():
        speeds = [
            found[0]["tokens"] / statistics.median(x for r in found for x in r[side][0])
            for side in ("plain", "ours")
        ]
        ratios = []
        for kind in range(2):
            each = [x for r in found for x in block_ratios(r["plain"][kind], r["ours"][kind])]
            low, middle, high = statistics.quantiles(each, n=4)
            ratios.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        own, plain = found[0]["operators"]
        print(
            f"| {loops} | {speeds[0]:,.0f} | {speeds[1]:,.0f} | {ratios[0]} | {ratios[1]} "
            f"| {plain:,} | {own:,} |"
        )


def block_ratios(plain: list[float], ours: list[float]) -> list[float]:
    """Return the ratio of each block of steps."""
    return [
        sum(plain[i : i + BLOCK]) / sum(ours[i : i + BLOCK])
        for i in range(0, len(ours) - BLOCK + 1, BLOCK)
    ]


if __name__ == "__main__":
    sys.exit(main())
