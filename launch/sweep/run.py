"""Several runs from one command: check all, then run them in turn or side by side.

Every point has a folder of its own; what became of it is a line of ledger.jsonl. The same command
again skips the points that are done, and continues those that were interrupted.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from launch.killed import kernel_kills, kill_named
from launch.sweep import ledger as ledgers
from launch.sweep.ledger import is_finished, last_exit, trained_otherwise
from launch.sweep.places import Places, gpus_of
from launch.sweep.points import Match, Point, Start, points
from launch.sweep.processes import OUTPUT_FILE, Running, passing_on, start_point
from launch.sweep.search import Search
from loopcoder.backends import Backends
from loopcoder.config.resolve import processes_to_start
from loopcoder.config.schema import Config
from loopcoder.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_NO_RETRY,
    EXIT_RETRY,
    InputError,
    Problem,
    counted,
)
from loopcoder.plan.fit import Needs, needs
from loopcoder.storage.folders import make_folder
from loopcoder.storage.lock import hold
from loopcoder.storage.run_lock import is_trained

_LOOK_EVERY_S = 0.2
_ENDING_S = 60.0
"""Within which what a killed sweep was training has saved and ended: schedulers give 30."""

_ENDS = {
    EXIT_BAD_INPUT: (
        "its message says what is wrong, and the other points may have the same",
        "mend that, then start the same command again: what is done is skipped",
    ),
    EXIT_RETRY: (
        "it was asked to stop; nothing is lost",
        "the same command continues with what is left",
    ),
    EXIT_NO_RETRY: (
        "it met a fault of its surroundings, such as a full disk, which its message names; "
        "the others would meet it too",
        "mend that, then the same command continues with what is left",
    ),
}
"""Why a sweep ends with the point that ended with a code, and what helps."""
_INTERRUPTED = f"loopcoder: {Problem('the search stops before its last trial', *_ENDS[EXIT_RETRY])}"


@dataclass(frozen=True)
class Sweep:
    """What became of a sweep."""

    folder: Path
    points: list[Point]
    exit_codes: list[int | None]
    """Of each point's last run; None where it has not ended yet."""
    code: int
    """Of the whole: 0, or that of a run that failed."""


Watch = Callable[[Sequence[Point], Mapping[str, str], Path], None]
"""Is called now and then while points run side by side, with all of them, by their labels where
those run that do, and the ledger."""


def sweep(
    overrides: Sequence[str],
    config_dir: Path | None,
    backends: Backends,
    refuse: Callable[[Config], None] = lambda config: None,
    places: Callable[[Sequence[Point]], Places] = lambda found: Places([], 1),
    watch: Watch | None = None,
    match: Match = "steps",
    search: Search | None = None,
    start: Start | None = None,
) -> Sweep:
    """Run every combination of the swept values; a preset may name axes (`sweep_axes`).

    Args:
        overrides: Those of the command line.
        config_dir: Folder of the user's presets.
        backends: Of this machine.
        refuse: Called with every point that is not finished; raises InputError for one that would
            not start.
        places: Says where points run side by side; one place: in turn, and they print here.
        watch: Sees the points that run side by side.
        match: What they have alike (`points`).
        search: Decides which points there are, one by one; None: every combination.
        start: Says which run a point starts from (`points`).

    Raises InputError with the problems of all points before the first one starts.
    """
    if "RANK" in os.environ:
        raise InputError.of(
            f"a sweep with RANK={os.environ['RANK']}",
            "every process of a torchrun or srun would run the whole sweep",
            "the same command without torchrun; each run starts its own processes",
        )
    if search is None:
        folder, found = points(overrides, config_dir, backends, match, start=start)
    else:
        folder = search.folder
        found = search.open(folder / ledgers.LEDGER_FILE)
        if not found and (point := search.next()):
            found.append(point)
    if several := next((p for p in found if p.config.parallel.nodes > 1), None):
        raise InputError.of(
            f"a sweep with parallel.nodes={several.config.parallel.nodes}",
            "the nodes would each go through the sweep in their own time, and never meet",
            "parallel.nodes=1, or loopcoder launch slurm nodes=N sweep: a job for every point",
        )
    ledger = folder / ledgers.LEDGER_FILE
    unfinished = [point for point in found if not is_finished(point, ledger)]
    refuse_other_runs(unfinished, ledger)
    _refuse(unfinished, refuse)
    with ExitStack() as held:
        make_folder(folder, "run_dir")
        held.enter_context(hold(folder / ".lock", partial(_busy, folder), needed=False))
        what = counted(len(found), "run") if search is None else "a search"
        print(f"{what} in {folder}", flush=True)
        _wait_for_those_left(unfinished)
        where = places(found)
        stopped = _Driver(found, ledger, config_dir, backends, where, watch, search).run()
    codes = [last_exit(point, ledger) for point in found]
    failed = [code for code in codes if code]
    if search is not None and search.best() is not None:
        failed = []  # of a search some may
    return Sweep(folder, found, codes, stopped or (failed[0] if failed else EXIT_DONE))


def refuse_other_runs(unfinished: Sequence[Point], ledger: Path) -> None:
    """Raise InputError for points in whose folders other settings were trained to the end."""
    problems = [
        Problem(
            f"[{point.label}] {point.run_dir} has a finished run of other settings",
            "nothing would be trained, and the results of that run would pass for this one's",
            "run_dir=ANOTHER_FOLDER, or the settings that the sweep began with",
        )
        for point in unfinished
        if trained_otherwise(point, ledger)
    ]
    if problems:
        raise InputError(problems)


def _busy(folder: Path, holder: str) -> None:
    raise InputError.of(
        f"process {holder} runs the sweep in {folder}",
        "two of them would train every point twice",
        f"wait for it; kill {holder} lets its points save and stop",
    )


def _wait_for_those_left(unfinished: Sequence[Point]) -> None:
    """Wait until the points that a killed sweep was training have saved and ended."""
    until = time.monotonic() + _ENDING_S
    left = [point for point in unfinished if is_trained(point.run_dir)]
    if left:
        names = ", ".join(point.label for point in left)
        print(f"waits for {names}: an earlier start left them, and they save and end", flush=True)
    while any(is_trained(point.run_dir) for point in left) and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)


class _Driver:
    """Starts points while there are places for them, and notes how they end."""

    def __init__(
        self,
        found: list[Point],
        ledger: Path,
        config_dir: Path | None,
        backends: Backends,
        places: Places,
        watch: Watch | None,
        search: Search | None = None,
    ):
        self._search = search
        self._found, self._ledger, self._config_dir = found, ledger, config_dir
        self._backends, self._places, self._watch = backends, places, watch
        self._in_turn = places.at_once == 1
        self._left: deque[Point] = deque()
        self._running: list[Running] = []
        self._stopped: tuple[Point, int] | None = None
        """The first point after which no more start, and how it ended."""

    def run(self) -> int | None:
        """Run what is not finished; return the code with which the sweep stops early."""
        for point in self._found:
            if is_finished(point, self._ledger):
                self._say(point, "done before")
            elif self._search is not None and not self._search.is_open(point):
                self._say(point, "failed before")
            else:
                self._left.append(point)
        with passing_on(self._running) as asked:
            while self._running or (self._stopped is None and not asked.stop and self._has_more()):
                while self._stopped is None and not asked.stop and self._start_next():
                    pass
                asked.pass_on()
                for run in list(self._running):
                    if (code := run.code()) is not None:
                        self._end(run, EXIT_RETRY if asked.stop and code != EXIT_DONE else code)
                if self._watch is not None and not self._in_turn:
                    self._watch(self._found, self._places_of_running(), self._ledger)
                if self._running:
                    time.sleep(_LOOK_EVERY_S)
            if asked.stop and self._stopped is None and self._left:
                self._stop(self._left[0], EXIT_RETRY)
        if self._stopped is None and asked.stop and self._search and self._search.has_next():
            print(_INTERRUPTED, file=sys.stderr, flush=True)
            return EXIT_RETRY
        if self._stopped is None:
            return None
        point, code = self._stopped
        left = [p for p in self._found if not is_finished(p, self._ledger)]
        if self._search is not None:
            left = [p for p in left if self._search.is_open(p)]
        print(_stopped(code, self._named(point), self._found, left), file=sys.stderr, flush=True)
        return code

    def _places_of_running(self) -> dict[str, str]:
        return {
            run.point.label: f"GPU {','.join(run.gpus)}" if run.gpus else "runs"
            for run in self._running
        }

    def _has_more(self) -> bool:
        """Say whether a point is left; a search is asked for one where none is."""
        if not self._left and self._search is not None and (point := self._search.next()):
            self._found.append(point)
            self._left.append(point)
        return bool(self._left)

    def _start_next(self) -> bool:
        if len(self._running) >= self._places.at_once or not self._has_more():
            return False
        point = self._left[0]
        gpus = self._places.take(gpus_of(point.config.parallel))
        if gpus is None:
            return False
        self._left.popleft()
        where = f" on GPU {','.join(gpus)}" if gpus else ""
        into = "" if self._in_turn else f"begins{where}, prints to {point.run_dir / OUTPUT_FILE}"
        self._say(point, into)
        rewinds, kills = ledgers.rewinds(point), kernel_kills()
        first = self._found[0].run_dir
        run = start_point(point, self._config_dir, first, gpus, alone=self._in_turn)
        self._running.append(replace(run, rewinds=rewinds, kills=kills))
        return True

    def _end(self, run: Running, code: int) -> None:
        """Note how a run ended, and decide whether others start."""
        point = run.point
        self._running.remove(run)
        self._places.give_back(run.gpus)
        noted = ledgers.note(self._ledger, point, run.began_s, time.time(), code)
        if not noted:
            print(f"loopcoder: no room to note in {self._ledger} that it ended", file=sys.stderr)
            code = code or EXIT_NO_RETRY
        if code == EXIT_RETRY and ledgers.rewinds(point) > run.rewinds:
            self._left.appendleft(point)  # of faults.rewinds at most
            return
        if not self._in_turn:
            see = f"; {point.run_dir / OUTPUT_FILE} says why" if code else ""
            self._say(point, f"ended with {code}{see}")
        if named := kill_named(code, run.kills, partial(self._needs, point)):
            print(named, file=sys.stderr)
        is_shared = code in (EXIT_BAD_INPUT, EXIT_RETRY)
        if is_shared or (code == EXIT_NO_RETRY and not (noted and ledgers.diverged(point))):
            self._stop(point, code)
        elif self._search is not None:
            self._search.ended(point, code)

    def _stop(self, point: Point, code: int) -> None:
        if self._stopped is None:
            self._stopped = point, code
            if self._running:
                self._say(point, f"ended with {code}; no more start, and those that run go on")

    def _named(self, point: Point) -> str:
        number = "" if self._search else f"[{self._found.index(point) + 1}/{len(self._found)}] "
        return f"{number}{point.label}"

    def _say(self, point: Point, what: str) -> None:
        print(f"{self._named(point)}{': ' if what else ''}{what}", flush=True)

    def _needs(self, point: Point) -> Needs:
        return needs(point.config, processes_to_start(point.config, self._backends), self._backends)


def _stopped(code: int, which: str, found: Sequence[Point], left: Sequence[Point]) -> str:
    """Return what to say where a sweep ends before its last point."""
    why, fix = _ENDS[code]
    names = ", ".join(p.label for p in left[:5])
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    done = len(found) - len(left)
    fact = f"the sweep stops: {which} ended with {code}; {done} of {counted(len(found), 'run')} "
    fact += f"{'is' if done == 1 else 'are'} done, left: {names}{more}"
    return f"loopcoder: {Problem(fact, why, fix)}"


def _refuse(unfinished: Sequence[Point], refuse: Callable[[Config], None]) -> None:
    problems = []
    for point in unfinished:
        try:
            refuse(point.config)
        except InputError as error:
            problems += [replace(p, fact=f"[{point.label}] {p.fact}") for p in error.problems]
    if problems:
        raise InputError(problems)
