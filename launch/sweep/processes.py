"""The runs of a sweep as processes of this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

from launch.process import child_environ
from launch.sweep.points import Point
from launch.torchrun import OVERRIDES_VARIABLE
from loopcoder.storage.folders import make_folder
from loopcoder.storage.process import exit_with_parent
from loopcoder.storage.signals import heard, leave_terminal

FIRST_VARIABLE = "LOOPCODER_FIRST_OF_SWEEP"
"""Run folder of the first point, for the others, so that all are trained on one corpus."""
OUTPUT_FILE = "output.log"
"""In a run's folder: what it printed, where several run side by side."""


@dataclass
class Running:
    """One point that is being trained."""

    point: Point
    process: subprocess.Popen[bytes]
    gpus: list[str]
    is_asked: bool = False
    """It was asked to stop."""
    began_s: float = field(default_factory=time.time)
    rewinds: int = 0
    """How often the point had gone back before."""
    kills: int = 0
    """Processes that the kernel had killed before."""

    def code(self) -> int | None:
        """Return its exit code; None: it goes on."""
        return self.process.poll()


def start_point(
    point: Point, config_dir: Path | None, first: Path, gpus: list[str], *, alone: bool
) -> Running:
    """Start `loopcoder train` for a point, which ends when this process does.

    Args:
        first: Run folder of the first point, whose corpus the others take if it fits.
        gpus: Those that it sees; none: what this process sees.
        alone: It prints to the terminal, else to a file of its folder.
    """
    command = [sys.executable, "-m", "loopcoder", "train", *point.overrides]
    if config_dir is not None:
        command += ["--config-dir", str(config_dir)]
    environ = {k: v for k, v in child_environ().items() if k != OVERRIDES_VARIABLE}
    environ[FIRST_VARIABLE] = str(first)
    if gpus:
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    output = None
    if not alone:
        make_folder(point.run_dir, "run_dir")
        output = (point.run_dir / OUTPUT_FILE).open("ab")
    try:
        # In a session of its own a Ctrl-C reaches it through `passing_on` only, and not twice.
        process = subprocess.Popen(
            command,
            env=environ,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=partial(exit_with_parent, signal.SIGTERM),  # noqa: PLW1509 - one system call that takes no lock
        )
    finally:
        if output is not None:
            output.close()
    return Running(point, process, gpus)


class Asked:
    """What asks a sweep to stop, and goes to its runs."""

    def __init__(self, running: Sequence[Running]):
        self._running = running
        self._number: int | None = None

    @property
    def stop(self) -> bool:
        return self._number is not None

    def hear(self, number: int, _frame: FrameType | None = None) -> None:
        """Take a signal, and pass it on; a second one goes to all again."""
        if number == signal.SIGHUP:
            leave_terminal()
        for run in self._running:
            run.is_asked = False
        self._number = number
        self.pass_on()

    def pass_on(self) -> None:
        """Pass on what was heard to the runs that do not know it, as one that was just started."""
        if self._number is None:
            return
        for run in list(self._running):
            if not run.is_asked:
                run.is_asked = True
                run.process.send_signal(self._number)


@contextmanager
def passing_on(running: Sequence[Running]) -> Iterator[Asked]:
    """Pass what asks this process to stop on to the runs that are there then: they save, and end.

    Call from the main thread.
    """
    asked = Asked(running)
    before = {number: signal.signal(number, asked.hear) for number in heard()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
