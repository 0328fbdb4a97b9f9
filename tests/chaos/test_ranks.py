"""What happens to one of several ranks: asked to stop in any phase, hung, a flipped bit.

All end with 75 in time, say why and who, and the same command goes on to the curve of a run that
nothing happened to, bit for bit.
"""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loopcoder.errors import EXIT_RETRY
from loopcoder.metrics.writer import read_metrics
from tests.chaos.kills import INTERVAL, Victim, assert_alike, saved
from tests.chaos.worlds import Stop, World, resume
from tests.parts import one_of

pytestmark = pytest.mark.chaos

LIMIT_S = 30
"""What schedulers give."""
SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT]
PHASES = {
    # by operation of rank 0
    "the start": "read rewinds.json",
    "loading": f"read checkpoints/step_{INTERVAL:08d}/__0_0.distcp",
    "a save": f"write checkpoints/step_{2 * INTERVAL:08d}/state.json.tmp",
    "pruning": f"remove checkpoints/step_{INTERVAL:08d}.deleting/state.json",
}
HUNG = """
import os, signal
from loopcoder.train import loop
step = loop.Run._step
def hung(run, data, logged):
    if data.after.step == 5 and rank == VICTIM:
        os.kill(os.getpid(), signal.SIGSTOP)
    return step(run, data, logged)
loop.Run._step = hung
"""
FLIPPED = """
import torch
from loopcoder.train import loop
compare = loop.compare_replicas
def flipped(state, step, event):
    if step == 5 and rank == VICTIM:
        parameter = next(state.network.parameters())
        parameter.data.view(-1).view(torch.int32)[7] ^= 1
    compare(state, step, event)
loop.compare_replicas = flipped
"""


@pytest.fixture
def run(whole: dict[int, Victim], tmp_path: Path, rng: random.Random) -> Victim:
    """A run on two ranks, one of which something happens to."""
    like = whole[2]
    background = rng.random() < 0.5
    print(f"checkpoint.async_save={background}")
    return Victim(like.server, tmp_path / "run", 2, background, rng, {}, like.options)


def finish(run: Victim, whole: dict[int, Victim]) -> None:
    run.finish()
    assert_alike(run.run_dir, whole[2].run_dir)


@pytest.mark.parametrize("phase", one_of(list(PHASES)))
@pytest.mark.parametrize("number", one_of(SIGNALS))
def test_asked_to_stop(
    run: Victim, whole: dict[int, Victim], rng: random.Random, phase: str, number: signal.Signals
) -> None:
    """One process or all, whichever the scheduler asks."""
    if phase == "loading":
        world = run.start(Stop(0, f"mkdir checkpoints/step_{2 * INTERVAL:08d}"))
        act_when_stopped(world, lambda _: world.kill())
    # before they have met, one that is not asked waits for a rank that may still come
    asked = [0, 1] if phase == "the start" else rng.choice([[0], [1], [0, 1]])
    print(f"{number.name} to {asked}")
    world, at = run.start(Stop(0, PHASES[phase])), []

    def ask(pid: int) -> None:
        at.append(time.monotonic())
        for rank in asked:
            os.kill(world.pids[rank], number)
        resume(pid)

    codes = act_when_stopped(world, ask)
    assert time.monotonic() - at[0] < LIMIT_S
    said = world.outputs()
    assert set(codes.values()) == {EXIT_RETRY}, said
    assert "Traceback" not in said, said
    if phase in ("a save", "pruning"):
        (stopped,) = {line["step"] for line in read_metrics(run.run_dir / "metrics.jsonl")[-1:]}
        assert f"stopped after step {stopped} of" in said
        assert saved(run.run_dir)[-1].step == stopped
    finish(run, whole)


def act_when_stopped(world: World, act: Callable[[int], object]) -> dict[int, int]:
    """Do something when a rank stops, given its process; return the codes."""
    acted = 0
    for operation in world.operations():
        if operation.is_stopped:
            act(operation.pid)
            acted += 1
    codes = world.wait()
    assert acted == 1, world.outputs()
    return codes


@pytest.mark.parametrize("phase", one_of(["a step", "a save"]))
def test_a_rank_that_hangs(
    run: Victim, whole: dict[int, Victim], rng: random.Random, phase: str
) -> None:
    """The other one says who is waited for, with its stacks, and ends."""
    victim = rng.randrange(2)
    run.options = [*run.options, "parallel.report_after_s=18", "parallel.timeout_s=25"]
    if phase == "a step":
        world = run.start(prelude=f"VICTIM = {victim}\n{HUNG}")
    else:
        world = run.start(Stop(victim, f"mkdir checkpoints/step_{2 * INTERVAL:08d}"))
    began = time.monotonic()
    ended = select.select([os.pidfd_open(world.pids[1 - victim])], [], [], 3 * LIMIT_S)[0]
    assert ended, world.outputs()
    assert time.monotonic() - began < 3 * LIMIT_S
    world.kill(victim)
    codes = world.finish()
    said = world.outputs()
    assert codes == {victim: -9, 1 - victim: EXIT_RETRY}, said
    where = f"rank {victim} ({os.uname().nodename}, process {world.pids[victim]})"
    assert f"{where} has been silent for" in said and f"in {phase} of step" in said, said
    assert (run.run_dir / "stacks" / f"rank_{1 - victim}.txt").stat().st_size > 0
    run.options = whole[2].options
    run.finish()


def test_a_flipped_bit_of_one_replica(
    run: Victim, whole: dict[int, Victim], rng: random.Random
) -> None:
    """It is in no checkpoint."""
    victim = rng.randrange(2)
    run.options = [*run.options, "faults.compare_interval=1"]
    world = run.start(prelude=f"VICTIM = {victim}\n{FLIPPED}")
    codes = world.finish()
    said = world.outputs()
    assert set(codes.values()) == {EXIT_RETRY}, said
    assert "data-parallel replicas have other" in said and f"rank {victim} on" in said
    events = read_metrics(run.run_dir / "events.jsonl")
    assert [e["ranks"] for e in events if e["kind"] == "replicas_differ"] == [[0, 1]]
    assert [c.step for c in saved(run.run_dir)] == [INTERVAL]
    finish(run, whole)
