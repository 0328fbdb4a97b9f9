"""kill -9 while a run goes back: it then goes back after all, and ends as the one that left the bad
data out from the start, bit for bit."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loopcoder.checkpoint.digest import read_digest
from loopcoder.checkpoint.rewind import rewinds_of
from loopcoder.errors import EXIT_RETRY
from loopcoder.metrics.writer import read_metrics
from tests.chaos.kills import FASTEST, curve, saved
from tests.chaos.worlds import ForkServer, Stop, World, resume
from tests.parts import one_of, third_of

pytestmark = pytest.mark.chaos

OPTIONS = ["train.max_steps=10", "checkpoint.interval=4", "checkpoint.keep=null"]
"""Steps of four samples."""
SPOILED = """
from loopcoder.train import loop

step, forward_backward, is_bad = loop.Run._step, loop.forward_backward, [False]

def observed(run, data, logged):
    is_bad[0] = rank == BAD_RANK and data.before.sample in (20, 24)  # of steps 6 and 7
    return step(run, data, logged)

def spoiled(state, *args):
    sums = forward_backward(state, *args)
    if is_bad[0]:
        for parameter in state.network.parameters():
            parameter.main_grad.fill_(float("nan"))
    return sums

loop.Run._step, loop.forward_backward = observed, spoiled
"""

Start = Callable[..., World]


@pytest.fixture
def started(server: ForkServer, documents: Path, rng: random.Random) -> Start:
    """Start a run whose steps 6 and 7 have a gradient that is not finite on one of its ranks."""
    bad_rank: dict[int, int] = {}

    def start(run_dir: Path, ranks: int, *stops: Stop, skip: str = "[]") -> World:
        run_dir.parent.mkdir(exist_ok=True)
        overrides = [*FASTEST, f"path={documents}", *OPTIONS, "faults.bad_steps=2"]
        prelude = f"BAD_RANK = {bad_rank.setdefault(ranks, rng.randrange(ranks))}\n{SPOILED}"
        overrides.append(f"data.skip={skip}")
        return server.start(run_dir, overrides, ranks, stops=stops, prelude=prelude)

    return start


def starts_until_done(start: Callable[[], World]) -> Iterator[World]:
    """Start the same command as long as it asks for that."""
    for _ in range(4):
        world = start()
        codes = set(world.finish().values())
        assert codes <= {0} or codes <= {EXIT_RETRY}, (codes, world.outputs())
        yield world
        if codes == {0}:
            return
    pytest.fail("it goes back again and again")


@pytest.mark.parametrize("ranks", one_of([2, 1]))
def test_killed_before_every_operation_of_going_back(
    started: Start, tmp_path: Path, ranks: int
) -> None:
    skipped, whole = tmp_path / "skipped" / "run", tmp_path / "whole" / "run"
    world = started(skipped, ranks, skip="[{step:5,steps:3}]")
    assert set(world.finish().values()) == {0}, world.outputs()

    world = started(whole, ranks)
    operations = [o.name for o in world.operations() if o.rank == 0]
    assert set(world.wait().values()) == {EXIT_RETRY}, world.outputs()
    assert world.outputs().count("goes back to step 4") == 1
    assert len(list(starts_until_done(lambda: started(whole, ranks)))) == 1

    def assert_as_if_skipped(run_dir: Path) -> None:
        assert curve(run_dir) == curve(skipped)
        assert read_digest(saved(run_dir)[-1]) == read_digest(saved(skipped)[-1]) is not None
        assert [r.skip_steps for r in rewinds_of(run_dir)] == [3]

    assert_as_if_skipped(whole)
    refused = [
        e["step"] for e in read_metrics(whole / "events.jsonl") if e["kind"] == "step_refused"
    ]
    assert refused == [6, 7]

    # all that it does from the decision on: its notes, the file that counts, the folder's sync
    first = operations.index("write rewinds.json.tmp")
    before, stops = Counter(operations[: first - 1]), []
    for name in operations[first - 1 :]:
        before[name] += 1
        stops.append(Stop(0, name, before[name]))
    assert len(stops) >= 4
    for number, stop in third_of(list(enumerate(stops))):
        victims = [list(range(ranks)), *([r] for r in range(ranks) if ranks > 1)]
        for killed in victims:
            run_dir = tmp_path / f"{number}-{len(killed)}-{killed[0]}" / "run"
            world = started(run_dir, ranks, stop)
            for operation in world.operations():
                if operation.is_stopped:
                    world.kill(*killed)
                    if 0 not in killed:
                        resume(operation.pid)
            codes = world.wait()
            assert {codes[r] for r in killed} == {-9}, (stop, world.outputs())
            assert {codes[r] for r in codes if r not in killed} <= {EXIT_RETRY}, world.outputs()
            again = list(starts_until_done(lambda: started(run_dir, ranks)))  # noqa: B023
            print(f"killed {killed} before {stop.name} ({stop.count}): {len(again)} starts")
            assert_as_if_skipped(run_dir)
