"""Rank 0 decides what a run starts from, and all ranks have to see it.

Each rank has a view of the disk of its own: a network disk may lag, a folder may exist on every
node under the same name. Two ranks that start from different checkpoints would train something that
is neither, and would say nothing.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from loopcoder.checkpoint.start import Reached, Start
from loopcoder.config.data import SkipConfig
from loopcoder.errors import EXIT_BAD_INPUT, DiskFull, InputError, LoopcoderError, ProcessLost
from loopcoder.storage.disk import is_disk_full, remedy
from loopcoder.storage.files import missed_within

_SEEN = ".seen-by-all-"


@dataclass(frozen=True)
class Decision:
    """What rank 0 found in its view of a run's folder."""

    start: Start | None
    """What the run starts from."""
    done: Reached | None
    """Where it stands if there is nothing left to train."""
    corpus: str
    """Fingerprint of what it trains on."""
    reader: str
    """`data.reader`, which decides the order."""
    notes: tuple[str, ...] = ()
    """What is to be said of the start."""
    skip: tuple[SkipConfig, ...] = ()
    """`data.skip`, with what the run left out when it went back to a checkpoint."""


def agree(run_dir: Path, corpus: str, within_s: float, decide: Callable[[], Decision]) -> Decision:
    """Return what rank 0 decides, once every rank sees what it decided on. All ranks must call it.

    Args:
        run_dir: Folder of the run, as this rank knows it.
        corpus: Fingerprint of this rank's corpus.
        within_s: How long a network disk may lag.
        decide: Called on rank 0.

    Raises:
        LoopcoderError: what rank 0 raised, on all ranks.
        InputError: another rank has another folder or corpus.
        ProcessLost: another rank does not see the checkpoint yet.
    """
    if dist.get_world_size() == 1:
        return decide()
    with _token(run_dir) as token:
        decision, sizes = _from_rank_0(decide)
        unseen = _unseen(run_dir, token, decision, sizes, corpus, within_s)
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, unseen)
    missed = [(rank, *what) for rank, what in enumerate(found) if what is not None]
    if missed:
        raise _error(missed, within_s)
    return decision


@contextmanager
def _token(run_dir: Path) -> Iterator[str]:
    """Let rank 0 write a file into the folder while the block runs; return its name.

    Raises:
        InputError: on all ranks, where it cannot: the others would take it for another folder.
    """

    def written() -> str:
        for left in run_dir.glob(f"{_SEEN}*"):  # of a start that was killed in here
            left.unlink(missing_ok=True)
        name = f"{_SEEN}{uuid.uuid4().hex}"
        (run_dir / name).touch()
        return name

    name = of_rank_0(written)
    try:
        yield name
    finally:
        if dist.get_rank() == 0:
            with suppress(OSError):
                (run_dir / name).unlink(missing_ok=True)


def _from_rank_0(decide: Callable[[], Decision]) -> tuple[Decision, dict[str, int]]:
    """Return the decision and the files of its checkpoint, whole or not, with their bytes; raise
    what rank 0 raised."""

    def both() -> tuple[Decision, dict[str, int]]:
        decision = decide()
        return decision, _sizes(decision.start)

    return of_rank_0(both)


def _sizes(start: Start | None) -> dict[str, int]:
    if start is None:
        return {}
    files = (path for path in start.checkpoint.path.iterdir() if path.is_file())
    return {path.name: path.stat().st_size for path in files}


def _unseen(
    run_dir: Path,
    token: str,
    decision: Decision,
    sizes: dict[str, int],
    corpus: str,
    within_s: float,
) -> tuple[str, str, str] | None:
    """Return host, kind and fact of what this rank does not see in time; None: it sees all."""
    host = socket.gethostname()
    if corpus != decision.corpus:
        return host, "corpus", f"has the corpus {corpus}, rank 0 {decision.corpus}"

    def missed() -> tuple[str, str, str] | None:
        if not _is_there(run_dir / token):
            fact = f"does not see in {run_dir.absolute()} what rank 0 writes there"
            return host, "folder", fact
        unlike = _unlike(decision.start, sizes)
        return None if unlike is None else (host, "checkpoint", unlike)

    return missed_within(within_s, missed)


def _is_there(path: Path) -> bool:
    """Say whether a file is there; reading its folder makes a network disk look anew."""
    with suppress(OSError):
        return path.exists() or path.name in {p.name for p in path.parent.iterdir()}
    return False


def _unlike(start: Start | None, sizes: dict[str, int]) -> str | None:
    """Return what of the files of rank 0's checkpoint this rank does not see."""
    try:
        found = _sizes(start)
    except OSError as error:
        return f"does not see {error.filename}"
    for name, size in sizes.items():
        if found.get(name) != size and start is not None:
            there = f"has {found[name]:,} of" if name in found else "does not see"
            return f"{there} {size:,} bytes of {start.checkpoint.path / name}"
    return None


def _error(missed: list[tuple[int, str, str, str]], within_s: float) -> Exception:
    shown = [f"rank {rank} ({host}) {fact}" for rank, host, _, fact in missed[:8]]
    more = f", and {len(missed) - 8} more ranks" if len(missed) > 8 else ""
    fact = f"{'; '.join(shown)}{more}, after {within_s:g} s (checkpoint.visible_within_s)"
    kinds = {kind for _, _, kind, _ in missed}
    if "corpus" in kinds:
        return InputError.of(
            fact,
            "the ranks would train on different data",
            "a cache that all nodes share (data.build.cache_dir=), or data=corpus path=DIR with "
            "the same corpus on all",
        )
    if "folder" in kinds:
        return InputError.of(
            fact,
            "every process has to write into the same folder; a disk of its own has another one of "
            "the same name",
            "run_dir=DIR on a disk that all nodes share",
        )
    return ProcessLost.of(
        fact,
        "the ranks would start from different checkpoints; a network disk that lags catches up",
        "start the same command again",
    )


def of_rank_0[T](value: Callable[[], T]) -> T:
    """Return on all ranks what rank 0 makes of this, or raise on all what it raises there. All
    ranks must call it.

    Raises:
        InputError: besides, where rank 0 cannot read or write a file; DiskFull for want of room.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value()
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = value()
        except LoopcoderError as error:
            told[1] = error
        except OSError as error:
            full = is_disk_full(error)
            told[1] = (DiskFull if full else InputError).of(
                f"rank 0 cannot use {error.filename}: {error.strerror or error}",
                "what it sees of the run's folder counts for all",
                f"{remedy(error) if full else 'a run_dir that can be read and written'}, then "
                "the same command",
            )
    dist.broadcast_object_list(told, 0)
    if told[1] is not None:
        raise told[1]
    result: T = told[0]
    return result


def same_error_on_all(error: LoopcoderError | None) -> None:
    """Raise on every rank what any of them found. All ranks must call it."""
    if dist.get_world_size() == 1:
        if error is not None:
            raise error
        return
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, error)
    # what no restart mends counts first
    raised = sorted(
        (e for e in found if e is not None), key=lambda e: e.exit_code != EXIT_BAD_INPUT
    )
    if raised:
        raise raised[0]
