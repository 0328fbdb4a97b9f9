"""Kills at drawn moments: where a run is ended, what is on its disk then, and whether it lost more
than it may."""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

from loopcoder.checkpoint import format as checkpoints
from loopcoder.checkpoint.digest import read_digest
from loopcoder.errors import EXIT_RETRY
from loopcoder.metrics.writer import Record, read_metrics
from tests.chaos.worlds import ForkServer, Operation, Stop, World, resume
from tests.train.conftest import SMALL

INTERVAL, KEEP, STEPS = 3, 2, 14
"""Steps between checkpoints, checkpoints that stay, and steps of a run."""
FASTEST = [
    *SMALL,
    f"train.max_steps={STEPS}",
    f"checkpoint.interval={INTERVAL}",
    f"checkpoint.keep={KEEP}",
    "eval.interval=null",
    "eval.at_end=false",
    "logging.progress=false",
    "parallel.nproc_per_node=null",
    "parallel.timeout_s=60",
    "train.micro_batch_size=1",
]
_OF_THE_CLOCK = re.compile(r"^compute_s|(_s|time|_per_s_per_rank|memory_bytes|goodput)$")
_STEP = re.compile(r"step_(\d{8})")


def curve(run_dir: Path) -> list[Record]:
    """Return what a run has recorded of every step, but for what depends on the clock."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not _OF_THE_CLOCK.search(k)} for line in lines]


def saved(run_dir: Path) -> list[checkpoints.Checkpoint]:
    return checkpoints.complete(run_dir / "checkpoints")


def names_in(run_dir: Path) -> set[str]:
    """Return the paths of all that is in the folder of a run, but for what earlier starts recorded
    that had no checkpoint yet."""
    found = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*")}
    return {name for name in found if not re.fullmatch(r"metrics\.\d+\.jsonl", name)}


def assert_alike(run_dir: Path, other: Path) -> None:
    """Assert that two runs have the same curve, the same final state bit for bit, and that one
    left nothing in its folder that the other did not."""
    assert curve(run_dir) == curve(other)
    assert [line["step"] for line in curve(run_dir)] == list(range(1, STEPS + 1))
    newest, expected = saved(run_dir)[-1], saved(other)[-1]
    assert newest.step == expected.step == STEPS
    assert read_digest(newest) == read_digest(expected) is not None
    assert not (left := names_in(run_dir) - names_in(other)), left


@dataclass
class Kill:
    """One kill, and what it cost."""

    moment: str
    victims: str
    phase: str = ""
    """By what is on the disk."""
    at_step: int = 0
    """The last that was recorded."""
    newest: int = 0
    """Step of the newest complete checkpoint, from which the next start goes on."""
    begun: int = 0
    """The last step whose save had begun."""
    others_s: float = 0.0
    """How long those that were not killed took to end."""

    def __str__(self) -> str:
        lost = self.at_step - self.newest
        return (
            f"killed {self.victims} at {self.moment}: {self.phase}; "
            f"goes on from step {self.newest}, {lost} steps lost, over after {self.others_s:.1f} s"
        )


@dataclass
class Victim:
    """A run in a folder, which is killed again and again and goes on."""

    server: ForkServer
    run_dir: Path
    ranks: int
    background: bool
    rng: random.Random
    known: dict[str, set[tuple[int, str]]]
    """What starts do, by kind: rank and operation, with {} for the step of a checkpoint."""
    options: list[str]

    def start(self, *stops: Stop, launcher: bool = True, prelude: str = "") -> World:
        background = f"checkpoint.async_save={str(self.background).lower()}"
        overrides = [*FASTEST, *self.options, background]
        return self.server.start(
            self.run_dir, overrides, self.ranks, stops=stops, launcher=launcher, prelude=prelude
        )

    def finish(self) -> None:
        """Let the run come to its end."""
        world, learned = self.start(), _Learned(self)
        for operation in world.operations():
            learned.add(operation)
        assert set(world.wait().values()) == {0}, world.outputs()

    def drawn(self) -> tuple[str, Stop]:
        """Return a moment of the next start that has not come yet: half of them are in a save."""
        newest = saved(self.run_dir)[-1].step if saved(self.run_dir) else 0
        coming = [s for s in range(newest + 1, STEPS) if s % INTERVAL == 0] + [STEPS]
        step = self.rng.choice(coming[:2])
        pruned = (
            step - KEEP * INTERVAL if step < STEPS else (STEPS // INTERVAL - KEEP + 1) * INTERVAL
        )
        steps = {"start": 0, "save": step, "load": newest, "prune": pruned}
        kinds = [k for k in self.known if steps[k] > 0 or k == "start"]
        weights = [{"save": 6, "prune": 2, "load": 2, "start": 1}[k] for k in kinds]
        (kind,) = self.rng.choices(kinds, weights)
        rank, template = self.rng.choice(sorted(self.known[kind]))
        return kind, Stop(rank, template.replace("{}", f"{steps[kind]:08d}"))

    def kill(self) -> Kill | None:
        """Start the run and kill a rank or all of them at a drawn moment; None: the run came to its
        end without it."""
        kind, stop = self.drawn()
        exactly = self.rng.random() < 0.5
        delay_s = 0.0 if exactly else self.rng.uniform(0, 0.3)
        # before the ranks have met, those that are left wait for one that may still come
        everybody = self.ranks == 1 or kind == "start" or self.rng.random() < 0.5
        victims = range(self.ranks) if everybody else [self.rng.randrange(self.ranks)]
        world = self.start(stop, launcher=self.rng.random() < 0.7)
        learned, killed, at = _Learned(self), False, 0.0
        for operation in world.operations():
            learned.add(operation)
            if operation.is_stopped and not exactly:
                resume(operation.pid)
                time.sleep(delay_s)
            if operation.is_stopped:
                world.kill(*victims)
                killed, at = True, time.monotonic()
                if not everybody:
                    resume(operation.pid)
        codes = world.wait()
        if not killed or set(codes.values()) == {0}:
            assert set(codes.values()) == {0}, world.outputs()
            return None
        names = "all" if everybody else f"rank {victims[0]}"
        where = f"before `{stop.name}` of rank {stop.rank}"
        moment = where if exactly else f"{delay_s:.3f} s after {where[7:]}"
        kill = Kill(moment, f"{names} of {self.ranks}", others_s=time.monotonic() - at)
        self._check_ends(world, codes, list(victims), kill)
        self._look(kill)
        return kill

    def _check_ends(
        self, world: World, codes: dict[int, int], victims: list[int], kill: Kill
    ) -> None:
        """Those that were not killed end by themselves, say that they were left, and by whom."""
        for rank, code in codes.items():
            if rank in victims:
                assert code in (-9, 0), (str(kill), world.outputs())
                continue
            assert code in (EXIT_RETRY, 0), (str(kill), codes, world.outputs())
        survivors = [r for r, code in codes.items() if code == EXIT_RETRY]
        if survivors:
            said = world.outputs()
            named = rf"rank {victims[0]}\b|have not come: {victims[0]}\b"  # before they had met
            assert re.search(named, said), (str(kill), said)
            assert "Traceback" not in said, (str(kill), said)

    def _look(self, kill: Kill) -> None:
        """Find out what the kill left, and check that it is not more than an interval back."""
        lines = self.run_dir / "metrics.jsonl"
        recorded = read_metrics(lines) if lines.exists() else []
        kill.at_step = max((line["step"] for line in recorded), default=0)
        whole = saved(self.run_dir)
        kill.newest = whole[-1].step if whole else 0
        for checkpoint in whole:
            assert list(checkpoints.faults(checkpoint, "hash")) == []
        torn = checkpoints.incomplete(self.run_dir / "checkpoints")
        kill.begun = max([kill.newest, *(int(path.name[5:]) for path in torn)])
        kill.phase = f"step {kill.at_step} recorded"
        if torn:
            files = len(list(torn[-1].iterdir()))
            kill.phase += f", {torn[-1].name} torn with {files} files"
        if list(self.run_dir.glob("checkpoints/*.deleting")):
            kill.phase += ", one half deleted"
        assert kill.newest >= kill.begun - INTERVAL, str(kill)
        # what is trained while a save goes on in the background counts once that is complete
        most = 2 * INTERVAL if self.background else INTERVAL
        assert kill.at_step - kill.newest <= most, str(kill)


class _Learned:
    """What a start does, for moments of later ones."""

    def __init__(self, victim: Victim):
        self._known = victim.known
        self._before = [c.step for c in saved(victim.run_dir)]
        self._have_met = victim.ranks == 1

    def add(self, operation: Operation) -> None:
        """Take note of an operation."""
        if ".seen-by-all" in operation.name:  # which has another name each time
            self._have_met = True
            return
        if "ledger.json" in operation.name:  # of no step, and not at the start
            return
        template = _STEP.sub("step_{}", operation.name)
        self._known.setdefault(self._kind(operation), set()).add((operation.rank, template))

    def _kind(self, operation: Operation) -> str:
        step = _STEP.search(operation.name)
        if step is None or not self._have_met:
            return "start"
        if operation.name.startswith("read") and int(step[1]) in self._before:
            return "load"
        whole = operation.name.endswith(step[0]) and not operation.name.startswith(("read", "mk"))
        return "prune" if whole or ".deleting" in operation.name else "save"


def goes_on_from(run_dir: Path) -> list[int]:
    """Return the steps from which the starts of a run went on."""
    events = read_metrics(run_dir / "events.jsonl")
    return [event["step"] for event in events if event["kind"] == "run_continues"]
