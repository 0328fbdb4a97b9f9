"""Goodput: the share of a run's wall time that went into steps that count.

Wall time runs from the first start of a run, over all of its processes and what lies between them.
A step counts unless a kill or a rewind undid it. It is the runtime goodput of "ML productivity
goodput" (Google Cloud, 2024).

`time.jsonl` in the folder of a run is what it follows from: a line tells what one process has spent
on each kind so far, by its monotonic clock, so that a wall clock that is set back changes nothing
but the gaps between processes, which count as `down`. Lines are appended only: after a kill, what
came after the last one is part of that gap.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from loopcoder.errors import LoopcoderError
from loopcoder.metrics.lines import LineFile, parse
from loopcoder.metrics.words import duration

TIME_FILE = "time.jsonl"
STEPS, LOST, DOWN = "steps", "lost", "down"
KINDS = {
    STEPS: "steps that count",
    LOST: "lost steps",
    "start": "start",
    "data": "data",
    "evaluation": "evaluation",
    "saving": "saving",
    DOWN: "down",
}
"""What wall time goes into, and what it is called on the screen."""
_EVERY_S = 10.0
"""Seconds between lines while steps are trained."""


@dataclass(frozen=True)
class Mark:
    """A line of time.jsonl."""

    time: float
    """Wall clock, in seconds since 1970."""
    session: int
    """Number of the process, from 0."""
    from_step: int
    """Steps that were done when it began."""
    step: int
    """Steps that are done."""
    seconds: dict[str, float]
    """What it has spent so far, by kind; `steps` has all that it trained, whether they count or
    not."""
    anew: bool = False
    """The run began anew with this process: those before are another run's."""

    @property
    def began(self) -> float:
        """Wall clock at which the process began, as far as this line knows."""
        return self.time - sum(self.seconds.values())


@dataclass(frozen=True)
class Account:
    """Where the wall time of a run went."""

    seconds: Mapping[str, float]
    """By kind of `KINDS`."""

    @property
    def total(self) -> float:
        """Wall time in seconds."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """Share of the wall time that went into steps that count, 0 to 1."""
        return self.seconds.get(STEPS, 0.0) / self.total if self.total > 0 else 0.0

    def __str__(self) -> str:
        shares = (
            f"{name} {self.seconds[kind] / self.total:.1%}"
            for kind, name in KINDS.items()
            if kind != STEPS and self.seconds.get(kind, 0.0) >= 0.0005 * self.total > 0
        )
        return f"{self.goodput:.1%} of {duration(self.total)} in {KINDS[STEPS]}; " + (
            ", ".join(shares) or "nothing else"
        )

    def plus(self, seconds: Mapping[str, float]) -> Account:
        """Return the account with more time of some kinds."""
        return Account({k: self.seconds.get(k, 0.0) + seconds.get(k, 0.0) for k in KINDS})


def account_of(marks: Iterable[Mark]) -> Account:
    """Return where the time went up to the last of these lines, which are in the order of the file.

    The steps of a process count up to where a later one began; what it spent on others is lost.
    """
    sessions: list[list[Mark]] = []
    for mark in marks:
        if not sessions or sessions[-1][0].session != mark.session:
            sessions = [] if mark.anew else sessions
            sessions.append([])
        sessions[-1].append(mark)
    found, limit, began = Account({}), math.inf, math.inf
    for session in reversed(sessions):
        last = session[-1]
        steps = _steps_up_to(session, limit)
        seconds = {STEPS: steps, LOST: last.seconds.get(STEPS, 0.0) - steps}
        gap = max(0.0, began - last.time) if math.isfinite(began) else 0.0
        found = found.plus({**last.seconds, **seconds}).plus({DOWN: gap})
        limit, began = min(limit, last.from_step), session[0].began
    return found


def _steps_up_to(session: list[Mark], limit: float) -> float:
    """Return what a process had spent on steps when the last of them that counts was done."""
    reached = max((mark.step for mark in session if mark.step <= limit), default=None)
    # the first such line: the next may have a part of the next step in it
    return next((m.seconds.get(STEPS, 0.0) for m in session if m.step == reached), 0.0)


def read_marks(run_dir: Path) -> list[Mark]:
    """Read a run's time.jsonl; lines that are no record are left out, and a missing file is empty.

    Raises:
        OSError: it cannot be read.
    """
    path, adapter, marks = run_dir / TIME_FILE, TypeAdapter(Mark), []
    if not path.exists():
        return []
    with path.open("rb") as file:
        for line in file:
            try:
                marks.append(adapter.validate_python(parse(line)))
            except ValidationError:
                continue
    return marks


class TimeRecord:
    """Writes time.jsonl on rank 0, and knows the goodput so far; on other ranks it does nothing."""

    def __init__(
        self,
        run_dir: Path | None,
        spent: Callable[[], Mapping[str, float]],
        *,
        from_step: int,
        anew: bool = False,
        now: Callable[[], float] = time.time,
    ):
        """
        Args:
            run_dir: None: this is another rank.
            spent: returns the seconds that this process has spent so far, by kind.
            from_step: Steps that are done already.
            anew: Whether this is another run than the one whose folder it was.

        Raises:
            LoopcoderError: the disk is full.
        """
        self._spent, self._now, self._from_step, self._anew = spent, now, from_step, anew
        self._file: LineFile | None = None
        self._before, self._session, self._marked_at = Account({}), 0, -math.inf
        if run_dir is None:
            return
        known = read_marks(run_dir)
        self._session = 1 + max((mark.session for mark in known), default=-1)
        first = self._mark(from_step)
        nothing_yet = replace(first, time=first.began, seconds={})
        self._before = account_of([*known, nothing_yet])
        self._file = LineFile(run_dir / TIME_FILE)
        self._append(first)

    def account(self) -> Account:
        """Return where the run's time went up to now; the steps that this process trained count."""
        return self._before.plus(self._spent())

    def tick(self, step: int) -> None:
        """Write a line now and then; call it after every step."""
        if self._file and sum(self._spent().values()) - self._marked_at >= _EVERY_S:
            self.mark(step)

    def fields(self) -> dict[str, float]:
        """Return the field of a record of metrics."""
        return {} if self._file is None else {"goodput": self.account().goodput}

    def mark(self, step: int, *, sync: bool = False) -> None:
        """Write a line after a step; with `sync` it survives a power cut."""
        if self._file is not None:
            self._append(self._mark(step))
            if sync:
                self._file.sync()

    def close(self, step: int) -> None:
        """Write the last line. A second call does nothing."""
        if self._file is not None:
            with suppress(LoopcoderError):  # a full disk; how a run ends is not decided here
                self.mark(step)
            self._file.close()
            self._file = None

    def _mark(self, step: int) -> Mark:
        seconds = {kind: round(s, 3) for kind, s in self._spent().items()}
        now = round(self._now(), 3)
        return Mark(now, self._session, self._from_step, step, seconds, self._anew)

    def _append(self, mark: Mark) -> None:
        assert self._file is not None
        self._marked_at = sum(mark.seconds.values())
        self._file.append(asdict(mark))
