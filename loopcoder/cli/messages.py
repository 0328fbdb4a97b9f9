"""How a verb that did not finish says why: once, however many ranks have the same to say."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import psutil

from loopcoder.cli.arguments import rank
from loopcoder.errors import InputError, LoopcoderError, Preempted, Rewound, TrainingDiverged

_RANK_0_FIRST_S = 0.5
"""Seconds for which the others let rank 0 speak first."""


def print_error(error: LoopcoderError) -> None:
    """Print an error that is meant for the user."""
    if isinstance(error, InputError) and len(error.problems) > 1:
        numbered = "\n".join(f"{i}. {p}" for i, p in enumerate(error.problems, 1))
        text = f"{len(error.problems)} problems\n{numbered}"
    else:
        text = str(error) or type(error).__name__
    # every rank stops at the same step, whichever was asked, and diverges or goes back at the same
    _say_once(text, is_of_all=isinstance(error, Preempted | Rewound | TrainingDiverged))


def print_interrupted(error: KeyboardInterrupt) -> None:
    """Print what a Ctrl-C came to: the words of who raised it, or that nothing is lost."""
    _say_once(str(error) or "Ctrl-C; the same command continues", is_of_all=True)


def another_rank_failed_first() -> bool:
    """Say whether this rank's error follows from that of another, whose peers lost it.

    Only ranks that torchrun started know it. The others' words get a second to come. One that was
    killed without words is no longer there, or torchrun's SIGTERM tells, which this process
    survives from here on.
    """
    folder = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not folder:
        return False
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    time.sleep(2 * _RANK_0_FIRST_S)
    return bool(ended) or any(Path(folder).parents[1].glob("said-*")) or _a_peer_is_gone()


def _a_peer_is_gone() -> bool:
    """Say whether torchrun, our parent, has fewer workers left than it started here."""
    try:
        children = psutil.Process(os.getppid()).children()
        left = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    except psutil.Error:
        return False
    return len(left) < int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _say_once(text: str, *, is_of_all: bool) -> None:
    """Print a message unless another process of this torchrun has printed the same.

    Without torchrun, rank 0 prints the whole and the others one line, or nothing of what is of all.
    """
    sender = f"rank {rank()}: " if rank() > 0 else ""
    folder = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if folder:
        if _was_said(Path(folder).parents[1], text, is_of_all):
            return
    elif rank() > 0:
        if is_of_all:
            return
        text = text.splitlines()[0]
    print(f"loopcoder: {sender}{text}", file=sys.stderr)


def _was_said(attempt: Path, text: str, is_of_all: bool) -> bool:
    """Leave a mark of the message in the folder that all ranks of this machine share."""
    if rank() > 0:
        time.sleep(_RANK_0_FIRST_S)
    if is_of_all and any(attempt.glob("said-*")):
        return True  # torchrun stopped us because of what another rank said
    name = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
    try:
        (attempt / f"said-{name}").touch(exist_ok=False)
    except FileExistsError:
        return True
    except OSError:
        return False
    return False
