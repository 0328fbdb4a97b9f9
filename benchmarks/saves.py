"""What checkpoints cost: how long training stands still for a save, how fast saves and loads are.

    python benchmarks/saves.py                       # 7B width, 2 layers, 2 loops: on one 80 GB GPU
    python benchmarks/saves.py --deterministic       # the same with train.deterministic
    python benchmarks/saves.py --model plt_tiny --precision fp32 --length 256 --vocabulary 512

Steps go on while a save is written in the background; its stall is what they take in all beyond as
many median steps. It is held against the time that the bytes of a checkpoint take from the device
to the host at the rate measured here, and the disk's rate is that of one file, synced. After the
last save some steps are trained twice, the second time from the loaded checkpoint: whether their
weights and moments are equal bit for bit is said.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import io
import os
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from step import start_alone

OVERRIDES = {"plt_7b": ("model.num_loops=2", "model.num_layers=2")}
BASELINE_STEPS, REPLAYED_STEPS = 30, 5
GIB = 1 << 30


class Timed:
    """A run that is saved, as far as `Saver` needs one."""

    def __init__(self, arguments: argparse.Namespace, ranks: Any, run_dir: Path):
        import torch

        from loopcoder.backends import detect
        from loopcoder.config.compose import compose
        from loopcoder.config.resolve import resolve
        from loopcoder.data.batch import make_batch
        from loopcoder.train.state import build_state

        vocabulary = arguments.vocabulary
        overrides = [f"model={arguments.model}", *OVERRIDES.get(arguments.model, ())]
        overrides += [f"precision={arguments.precision}", f"model.vocab_size={vocabulary}"]
        overrides += ["checkpoint.keep=1", f"train.deterministic={arguments.deterministic}"]
        self.config = resolve(compose(overrides), detect())
        self.run_dir, self.ranks = run_dir, ranks
        self.state = build_state(self.config, ranks, vocabulary)
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(1, vocabulary, (1, arguments.length + 1), generator=generator)
        zeros = torch.zeros(1, dtype=torch.long)
        batch = make_batch(ids, zeros, zeros, 0, isolate_documents=False)
        self.batch = batch.pin() if ranks.device.type == "cuda" else batch
        self.saved: list[dict[str, Any]] = []
        self.steps = 0

    def _report(self, kind: str, **fields: Any) -> None:
        if kind == "checkpoint_saved":
            self.saved.append(fields)

    def saver(self, *, background: bool) -> Any:
        from loopcoder.checkpoint.save import Saver

        checkpoint = replace(self.config.checkpoint, async_save=background)
        return Saver(replace(self.config, checkpoint=checkpoint), self.run_dir, self._report)

    def step(self) -> float:
        """Train a step; return its seconds."""
        from loopcoder.optim.optimizer import update
        from loopcoder.train.step import forward_backward

        began = time.perf_counter()
        sums = forward_backward(self.state, [self.batch], 1)
        update(self.state.optimizer, self.config.optim, 1e-4, sums[1].sum()).item()
        self.steps += 1
        return time.perf_counter() - began

    def save(self, saver: Any) -> None:
        from loopcoder.checkpoint.state import CheckpointState
        from loopcoder.data.sampler import Position

        state = CheckpointState(
            position=Position(step=self.steps),
            num_loops=self.config.model.num_loops,
            vocab_size=self.config.model.vocab_size or 0,
            tokenizer_hash="",
            tokenizer_path="",
            corpus="",
            corpus_dir="",
            config_hash="",
            world_size=1,
            warmup_steps=1,
        )
        saver.save(self.state.network, self.state.ddp, self.state.optimizer, state)

    def digest(self) -> dict[str, str]:
        from loopcoder.checkpoint.digest import digest_of
        from loopcoder.checkpoint.save import sharded_state

        optimizer = self.state.optimizer
        shards = sharded_state(self.state.network, optimizer, is_loading=False)
        return digest_of(shards, optimizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="plt_7b")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=76800)
    parser.add_argument("--saves", type=int, default=3, help="in the background; 0: steps only")
    parser.add_argument("--folder", help="where checkpoints go; default: a temporary one")
    parser.add_argument("--profile", action="store_true", help="say where a stall comes from")
    parser.add_argument("--deterministic", action="store_true", help="train.deterministic=true")
    arguments = parser.parse_args()
    if arguments.deterministic:
        from loopcoder.train.deterministic import use_deterministic_algorithms

        use_deterministic_algorithms()
    ranks = start_alone()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print("| what | figure |\n| --- | --- |")
        for what, figure in measured(arguments, ranks, Path(folder)):
            print(f"| {what} | {figure} |", flush=True)


def measured(arguments: argparse.Namespace, ranks: Any, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield what was measured, with its figure."""
    from loopcoder.checkpoint import format as layout
    from loopcoder.checkpoint.load import load

    disk_rate = bytes_per_s_of_disk(folder)
    yield "the disk, one file of 2 GiB, synced", f"{disk_rate / 1e9:.2f} GB/s"
    host_rate = bytes_per_s_to_host(ranks.device)
    yield "device to host, pinned", f"{host_rate / 1e9:.1f} GB/s"
    run = Timed(arguments, ranks, folder)
    for _ in range(4):
        run.step()
    gc.collect()
    gc.freeze()  # as a run does
    saver = run.saver(background=True)
    took, slowest, steps = while_memory_is_prepared(run, saver)
    yield (
        "memory for saves, beside the first steps",
        f"{took:.1f} s over {steps} steps; longest step {slowest:.2f} s",
    )
    median = statistics.median(run.step() for _ in range(BASELINE_STEPS))
    yield "step without a save, median", f"{median * 1e3:.1f} ms"
    if arguments.saves == 0:
        return
    for number in range(arguments.saves):
        stall, longest, steps = stall_of_save(run, saver, median)
        size, seconds = run.saved[-1]["bytes"], run.saved[-1]["seconds"]
        limit = 1.5 * size / host_rate
        yield (
            f"save {number + 1} in the background: {size / 1e9:.1f} GB",
            f"{seconds:.1f} s ({size / seconds / 1e9:.2f} GB/s) over {steps} steps; training "
            f"stood still for {stall:.2f} s, aim {limit:.2f} s; longest step {longest:.2f} s",
        )
    if arguments.profile:
        print(f"\n{where_time_goes(run, saver)}", file=sys.stderr, flush=True)
    with clock() as seconds_of:
        run.save(run.saver(background=False))
    size, seconds = run.saved[-1]["bytes"], seconds_of()
    yield "save at once", f"{seconds:.1f} s ({size / seconds / 1e9:.2f} GB/s)"
    checkpoint = layout.find(folder)
    with clock() as seconds_of:
        faults = list(layout.faults(checkpoint, "hash"))
    assert not faults, faults
    yield "comparing it with its manifest", f"{size / seconds_of() / 1e9:.2f} GB/s"
    for _ in range(REPLAYED_STEPS):
        run.step()
    first = run.digest()
    network, optimizer = run.state.network, run.state.optimizer
    with clock() as seconds_of:
        load(checkpoint, network, optimizer, run.config, is_verified=True)
    yield "load, with its digest", f"{seconds_of():.1f} s ({size / seconds_of() / 1e9:.2f} GB/s)"
    for _ in range(REPLAYED_STEPS):
        run.step()
    second = run.digest()
    differ = [name for name in first if first[name] != second[name]]
    yield (
        f"{REPLAYED_STEPS} steps after it, trained twice",
        "equal bit for bit" if not differ else f"{len(differ)} of {len(first)} tensors differ",
    )


def while_memory_is_prepared(run: Timed, saver: Any) -> tuple[float, float, int]:
    """Train while memory for background saves is taken; return the seconds that takes, those of the
    longest step, and how many steps were trained."""
    steps, longest = 0, 0.0
    with clock() as seconds_of:
        saver.prepare(run.state.network, run.state.optimizer)
        while saver.is_preparing:
            longest = max(longest, run.step())
            steps += 1
    return seconds_of(), longest, steps


def stall_of_save(run: Timed, saver: Any, median: float) -> tuple[float, float, int]:
    """Save in the background; return the seconds that training stood still for it, those of the
    longest step, and how many steps were trained meanwhile."""
    saved, steps, longest = len(run.saved), 0, 0.0
    with clock() as seconds_of:
        run.save(saver)
        longest = seconds_of()
        while len(run.saved) == saved:
            began = time.perf_counter()
            run.step()
            saver.poll()
            longest = max(longest, time.perf_counter() - began)
            steps += 1
    return seconds_of() - steps * median, longest, steps


def where_time_goes(run: Timed, saver: Any) -> str:
    """Save in the background once more; return in which functions training waited for it."""
    profile, text = cProfile.Profile(), io.StringIO()
    profile.runcall(run.save, saver)
    saver.finish()
    for order in ("cumtime", "tottime"):
        pstats.Stats(profile, stream=text).sort_stats(order).print_stats(30)
    return text.getvalue()


def bytes_per_s_to_host(device: Any) -> float:
    """Return the rate at which pinned memory is filled from the device."""
    import torch

    size = GIB // 2
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    rates = []
    for _ in range(5):
        with clock() as seconds_of:
            target.copy_(source, non_blocking=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
        rates.append(size / seconds_of())
    return statistics.median(rates)


def bytes_per_s_of_disk(folder: Path) -> float:
    """Return the rate at which one process writes a file and syncs it."""
    block, path = os.urandom(1 << 26), folder / "disk"
    with clock() as seconds_of, open(path, "wb") as file:
        for _ in range(32):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    return 32 * len(block) / seconds_of()


@contextmanager
def clock() -> Iterator[Callable[[], float]]:
    """Yield a function that returns the seconds since the block began, or those that it took."""
    began, ended = time.perf_counter(), None

    def seconds() -> float:
        return (ended or time.perf_counter()) - began

    try:
        yield seconds
    finally:
        ended = time.perf_counter()


if __name__ == "__main__":
    main()
