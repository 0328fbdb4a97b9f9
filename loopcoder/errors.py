"""Errors of three parts: the fact with its values, why it is wrong, and what mends it.

Exit codes are a contract with launchers: 0 done, 3 bad config or input, 75 retry, 76 do not retry.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

EXIT_DONE = 0
EXIT_BAD_INPUT = 3
EXIT_RETRY = 75
EXIT_NO_RETRY = 76
EXIT_KILLED = 137
"""As a shell says it of a process that SIGKILL ended."""

EXIT_VARIABLE = "LOOPCODER_EXIT_FILE"
"""Path of the files PATH.RANK in which each worker leaves its exit code, unless it is 0. One for
each: on a network disk lines that several machines append to one file may be lost."""


def record_exit(code: int) -> None:
    """Tell the launcher that started this process with which code it is about to end."""
    path = os.environ.get(EXIT_VARIABLE)
    if path is not None and code != EXIT_DONE:
        rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0")
        with open(f"{path}.{rank}", "a", encoding="ascii") as file:
            file.write(f"{code}\n")


def recorded_exits(path: Path) -> dict[int, int]:
    """Return the exit codes that ranks have left, by rank, the first to end first; of those
    that ended at the same moment, those that say more than that others have gone.

    Args:
        path: What EXIT_VARIABLE names.
    """
    found = []
    for file in path.parent.glob(f"{path.name}.*"):
        rank, codes = file.suffix[1:], file.read_text(encoding="ascii").split()
        if codes and rank.isdigit():
            code = int(codes[0])
            found.append((file.stat().st_mtime_ns, code == EXIT_RETRY, int(rank), code))
    return {rank: code for _, _, rank, code in sorted(found)}


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, for a message: `1 document`, `0 processes`, `2,000 steps`."""
    plural = "es" if noun.endswith(("s", "ch")) else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


@dataclass(frozen=True)
class Problem:
    """One mistake in a config or input."""

    fact: str
    """What was found, with its values."""
    why: str
    """Why that cannot work."""
    fix: str
    """The override or command that mends it."""

    def __str__(self) -> str:
        return f"{self.fact}\n    why: {self.why}\n    fix: {self.fix}"


class LoopcoderError(Exception):
    """An error whose message is meant for the user; the command line prints it without a
    traceback."""

    exit_code = EXIT_NO_RETRY

    @classmethod
    def of(cls, fact: str, why: str, fix: str) -> Self:
        """Make an error of three parts."""
        return cls(str(Problem(fact, why, fix)))


class InputError(LoopcoderError):
    """Bad config or input, found before any long work. Carries every problem found, not only the
    first."""

    exit_code = EXIT_BAD_INPUT

    def __init__(self, problems: Sequence[Problem]):
        self.problems = list(problems)
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[type[Self], tuple[list[Problem]]]:
        """Let one rank raise what another one found."""
        return type(self), (self.problems,)

    @classmethod
    def of(cls, fact: str, why: str, fix: str) -> Self:
        return cls([Problem(fact, why, fix)])


class DiskFull(InputError):
    """There is no room for what has to be written; the same command would end the same way."""

    exit_code = EXIT_NO_RETRY


class OutOfMemory(LoopcoderError):
    """A GPU or the machine had no memory left; the same command would end the same way."""

    exit_code = EXIT_NO_RETRY


class Preempted(LoopcoderError):
    """The run was asked to stop and has saved its state; start the same command again."""

    exit_code = EXIT_RETRY


class Rewound(LoopcoderError):
    """The run goes back to a checkpoint; the same command continues from there."""

    exit_code = EXIT_RETRY


class ProcessLost(LoopcoderError):
    """A process or node that worked for this one is gone; the same command continues."""

    exit_code = EXIT_RETRY


class Unreachable(LoopcoderError):
    """A server that a run reads from does not answer; the same command goes on once it does."""

    exit_code = EXIT_RETRY


class TrainingDiverged(LoopcoderError):
    """The loss or gradient is not finite; the same command would end the same way."""

    exit_code = EXIT_NO_RETRY
