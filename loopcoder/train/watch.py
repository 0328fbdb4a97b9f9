"""A thread that knows where its process stands, and ends it where it cannot end itself.

The main thread may be inside of a library for long: waiting for a rank that is gone, compiling,
reading from a disk that does not answer. Then Python hears no signal, and nobody says who is
waited for. This thread sees both.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from loopcoder.config.schema import ParallelConfig
from loopcoder.errors import EXIT_RETRY, record_exit
from loopcoder.metrics.goodput import DOWN, STEPS
from loopcoder.metrics.writer import EVENTS_FILE, append_event
from loopcoder.parallel.collectives import nccl_trace, pending
from loopcoder.parallel.patient import StoreSilent
from loopcoder.parallel.peers import END, SILENT_S, Peers
from loopcoder.storage.secrets import masked
from loopcoder.storage.signals import ASKS, name_of

START, FIRST_STEP, STEP = "the start", "its first step", "a step"
DATA, EVALUATION, SAVE = "waiting for data", "an evaluation", "a save"
COMPLETION = "completing a save"
FETCH, COPY = "fetching a checkpoint", "copying a checkpoint"
_KINDS = {
    START: "start",
    FIRST_STEP: STEPS,
    STEP: STEPS,
    DATA: "data",
    EVALUATION: "evaluation",
    SAVE: "saving",
    COMPLETION: "saving",
    COPY: "saving",
    FETCH: "start",
    END: DOWN,
}
"""As what the time of a phase counts (`metrics.goodput`)."""
_GRACE_S = {START: 4.0, FIRST_STEP: 12.0, DATA: 8.0, END: 28.0}
"""Seconds that a phase gets to end after a signal: there is nothing in it that could be saved."""
_OTHER_GRACE_S = 20.0
_STORE_IS_GONE = "rank 0 or the launcher, which keeps the store of the world, is gone"
_TICK_S = 0.5
STACKS = "stacks"
"""Folder below the run's in which each rank leaves where it hung."""


class Watch:
    """Watches one process; `enter` tells it what begins.

    A phase that is asked to stop and does not end is left with 75: its newest checkpoint is what
    the same command continues from. No signal ends a save. One that lasts `parallel.report_after_s`
    is reported, with the ranks that are waited for and the Python stacks; with several ranks one
    that lasts `parallel.timeout_s` is left with 75 too. Make and close it in the main thread.
    """

    def __init__(
        self, run_dir: Path, rank: int, parallel: ParallelConfig, began: float | None = None
    ):
        """
        Args:
            began: When the command was started, on the monotonic clock; None: now.
        """
        self._run_dir, self._rank, self._parallel = run_dir, rank, parallel
        self._phase, self._step, self._since = START, 0, time.monotonic()
        self._spent = {START: 0.0 if began is None else max(0.0, self._since - began)}
        self._longest_s = 0.0
        self._asked: tuple[str, float] | None = None
        self._reported = self._has_left = False
        self._peers: Peers | None = None
        self._waits_for: list[str] = []
        self._asks_next = 0.0
        self._lock = threading.Lock()
        self._heard, to_here = os.pipe()
        os.set_blocking(self._heard, False)
        os.set_blocking(to_here, False)
        self._pipe = (self._heard, to_here)
        # The C part of Python writes each signal there at once, wherever the main thread is.
        self._before = signal.set_wakeup_fd(to_here, warn_on_full_buffer=False)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, name="loopcoder-watch", daemon=True)
        self._thread.start()

    def enter(self, phase: str, step: int) -> None:
        """Say that a phase begins."""
        now = time.monotonic()
        if self._phase == STEP:
            self._longest_s = max(self._longest_s, now - self._since)
        self._spent[self._phase] = self._spent.get(self._phase, 0.0) + now - self._since
        self._phase, self._step, self._since, self._reported = phase, step, now, False

    def spent(self) -> dict[str, float]:
        """Return the seconds of this process so far, by kind of `metrics.goodput`."""
        seconds = dict.fromkeys(_KINDS.values(), 0.0)
        running = {self._phase: time.monotonic() - self._since}
        for phase, lasted in (*self._spent.items(), *running.items()):
            seconds[_KINDS[phase]] += lasted
        return seconds

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Be in another phase of the same step."""
        before = self._phase
        self.enter(phase, self._step)
        try:
            yield
        finally:
            self.enter(before, self._step)

    def meet(self, peers: Peers) -> None:
        """Tell the other ranks from here on where this one stands, and listen to them."""
        self.enter(self._phase, self._step)  # the wait for them is no part of it
        self._peers = peers

    def leaves(self, why: str, code: int) -> None:
        """Tell the other ranks, and rank 0 the record of the run, why this one ends."""
        if self._rank == 0 and not self._has_left and (self._run_dir / EVENTS_FILE).exists():
            self._has_left = True
            with suppress(OSError):
                fields = {"step": self._step, "why": why, "exit_code": code}
                append_event(self._run_dir, "run_stopped", **fields)
        if self._peers is not None:
            with self._lock, suppress(Exception):
                self._peers.tell(self._phase, self._step, left=why, code=code)

    def lost(self, patience_s: float = SILENT_S + 3) -> tuple[list[str], int]:
        """Return who is gone, after a collective failed, and the exit code that follows from it.

        Who ended on this machine is seen at once. Somebody there tells the others, or else it is a
        rank that has been silent for long.
        """
        if self._peers is None:
            return [], EXIT_RETRY
        self.enter(END, self._step)
        until, found = time.monotonic() + patience_s, list[str]()
        try:
            while not found and time.monotonic() < until:
                time.sleep(_TICK_S + self._peers.size / 100)
                with self._lock:
                    told = self._peers.told_lost()
                    found = self._peers.gone() or ([told] if told else [])
            with self._lock:
                found = found or self._peers.waited_for()
                self._peers.tell_lost("; ".join(found))
                return found, self._peers.code_of_the_gone() or EXIT_RETRY
        except StoreSilent:
            return found or [self._peers.silence()], EXIT_RETRY
        except Exception:  # of the store
            return found or [_STORE_IS_GONE], EXIT_RETRY

    def close(self) -> None:
        """Stop watching."""
        self._end.set()
        self._thread.join(4 * _TICK_S)
        signal.set_wakeup_fd(self._before)
        if self._thread.is_alive():  # the store does not answer
            return
        for descriptor in self._pipe:
            os.close(descriptor)

    def _look(self) -> None:
        found: list[str] = []
        while not self._end.wait(_TICK_S):
            self._listen()
            lasted = time.monotonic() - self._since
            if self._asked is not None:
                self._leave_if_stuck(*self._asked)
            if self._peers is not None:
                found = self._ask_peers(self._peers, lasted)
            if lasted > self._parallel.report_after_s and not self._reported:
                self._report(lasted, found)

    def _listen(self) -> None:
        with suppress(BlockingIOError):
            for number in os.read(self._heard, 512):
                if self._asked is None and number in ASKS:
                    self._asked = (name_of(number), time.monotonic())

    def _leave_if_stuck(self, name: str, at: float) -> None:
        phase, since = self._phase, self._since
        grace_s = _GRACE_S.get(phase, max(_OTHER_GRACE_S, 2 * self._longest_s))
        if phase not in (SAVE, COMPLETION) and time.monotonic() - max(at, since) > grace_s:
            self._leave(
                f"{name} in {phase} of step {self._step}, which did not end within {grace_s:.0f} s"
                "; the same command continues from the newest checkpoint"
            )

    def _ask_peers(self, peers: Peers, lasted: float) -> list[str]:
        """Return for whom this rank may be waiting; leave the world when it is lost."""
        why: str | None = None
        try:
            with self._lock:
                peers.tell(self._phase, self._step)
                if self._phase == END or lasted < 10 * _TICK_S:
                    return []
                why = peers.told_lost()
                if time.monotonic() > self._asks_next:  # every rank may ask for every rank
                    self._asks_next = time.monotonic() + 10 * _TICK_S + peers.size / 10
                    self._waits_for = peers.waited_for()
                    why = why or "; ".join(peers.gone())
                if not why and lasted > self._parallel.timeout_s:
                    why = self._timed_out("no rank is missing: a collective hangs")
                if why:
                    peers.tell_lost(why)
        except StoreSilent:  # a cut that is short is survived
            self._waits_for = [peers.silence()]
            if why is None and self._phase != END and lasted > self._parallel.timeout_s:
                why = self._timed_out()
        except Exception:  # of the store
            self._waits_for = [_STORE_IS_GONE]
            why = _STORE_IS_GONE if self._phase != END else None
        if why and lasted > 40 * _TICK_S:  # collectives fail by themselves first
            self._stacks()
            self._leave(f"{why}; the same command continues from the newest checkpoint")
        return self._waits_for

    def _timed_out(self, otherwise: str = "") -> str:
        waited_for = "; ".join(self._waits_for) or otherwise
        return f"{waited_for} (parallel.timeout_s={self._parallel.timeout_s:g})"

    def _report(self, lasted: float, waits_for: list[str]) -> None:
        self._reported = True
        file, collectives = self._stacks()
        text = f"{lasted:.0f} s in {self._phase} of step {self._step}"
        if waits_for:
            text += ": " + "; ".join(waits_for[:8])
        if collectives:
            text += f"; in {collectives[0]}"
        _say(f"rank {self._rank}: {text}; its stacks are in {file}")
        if self._rank == 0:
            with suppress(OSError):
                append_event(self._run_dir, "hang", text=text, stacks=str(file))

    def _stacks(self) -> tuple[Path | None, list[str]]:
        """Write where every thread of this process is, and the collectives that it is in; return
        them with the file."""
        file = self._run_dir / STACKS / f"rank_{self._rank}.txt"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as out:
                out.write(f"{time.strftime('%FT%TZ', time.gmtime())} {self._phase} {self._step}\n")
                out.flush()
                faulthandler.dump_traceback(out, all_threads=True)
                collectives = pending()  # it may wait
                out.writelines(f"in {collective}\n" for collective in collectives)
            if (trace := nccl_trace()) is not None:
                (file.parent / f"nccl_trace_rank_{self._rank}").write_bytes(trace)
        except OSError:
            return None, []
        return file, collectives

    def _leave(self, why: str) -> NoReturn:
        """End this process now, with the code that starts the same command again, or that with
        which it was about to end."""
        self.leaves(why, EXIT_RETRY)
        code = (self._peers.me.code if self._peers is not None else 0) or EXIT_RETRY
        _say(f"rank {self._rank}: {why}" if self._rank else why)
        with suppress(OSError):  # the launcher's folder is gone, or full
            record_exit(code)
        os._exit(code)


def _say(text: str) -> None:
    with suppress(OSError, ValueError):
        os.write(2, f"loopcoder: {masked(text)}\n".encode(errors="replace"))


def in_one_line(error: BaseException) -> str:
    """Return what an error says first."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
