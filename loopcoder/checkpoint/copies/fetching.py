"""A run comes back from its store where its folder is lost, or has fallen behind.

Two times: first, before there is a corpus, the process that decides fetches what is small, so that
all checks of a start see what the run goes on from (`step_N.part`, which is no checkpoint yet).
When the ranks have met, each fetches its part of the rest, and the folder gets its name last.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.agreed import of_rank_0, same_error_on_all
from loopcoder.checkpoint.choice import goes_back
from loopcoder.checkpoint.copies.download import fetch_file
from loopcoder.checkpoint.copies.early import first_files, goes_on_without
from loopcoder.checkpoint.copies.owner import check_owner, claim
from loopcoder.checkpoint.copies.stored import StoredCheckpoint, copies, copy_of, open_store
from loopcoder.checkpoint.copies.wanted import DAMAGED, Wanted
from loopcoder.config.schema import CheckpointConfig
from loopcoder.errors import InputError, LoopcoderError, Unreachable
from loopcoder.storage.files import in_words, sync_folder
from loopcoder.storage.writing import WritableStore


def fetch_together(
    asked: CheckpointConfig,
    run_dir: Path,
    say: Callable[[str], None],
    moved: Callable[[], None] = lambda: None,
) -> list[str]:
    """Fetch the checkpoint that the run goes on from, if its store has a newer one than its folder
    or the one that is asked for. All ranks must call it; rank 0 decides.

    Args:
        say: Called on all ranks, and prints on rank 0.
        moved: Called now and then.

    Returns what was said.

    Raises:
        LoopcoderError: on all ranks, what any of them met.
    """
    said: list[str] = []
    if asked.store is None:
        return said

    def tell(text: str) -> None:
        said.append(text)
        say(text)

    store = open_store(asked.store)
    while True:
        wanted, notes = of_rank_0(partial(_decide, store, run_dir, asked))
        for note in notes:
            tell(note)
        if wanted is None:
            break
        size = in_words(sum(entry["bytes"] for entry in wanted.files.values()))
        tell(f"fetching step {wanted.step} ({size}) from {wanted.url}")
        stored = copy_of(store, wanted.step)
        part = layout.step_folder(run_dir, wanted.step)
        part = part.with_name(part.name + layout.PART)
        faults = _fetch_together(stored, wanted, part, moved)
        if not faults:
            of_rank_0(partial(_finish, part))
            break
        tell(f"warning: {wanted.url} is damaged and not used: {'; '.join(faults)}")
        of_rank_0(partial(stored.set_aside, DAMAGED))
    return said


def _decide(
    store: WritableStore, run_dir: Path, asked: CheckpointConfig
) -> tuple[Wanted | None, list[str]]:
    """Say what is to be fetched, and prepare the folder for it; what does not count any more is
    set aside in the store."""
    try:
        check_owner(store, run_dir, asked)
        claim(store, run_dir)
        return first_files(store, run_dir, asked, sets_aside=True)
    except Unreachable as error:
        return None, [goes_on_without(run_dir, asked, error)]


def _fetch_together(
    stored: StoredCheckpoint, wanted: Wanted, part: Path, moved: Callable[[], None]
) -> list[str]:
    """Fetch this rank's share of the files; return what is wrong with those of all ranks."""
    rank, size = dist.get_rank(), dist.get_world_size()
    faults = list[str]()
    error: LoopcoderError | None = None
    for name in sorted(wanted.files)[rank::size]:
        try:
            fault = fetch_file(stored.store, name, part / name, wanted.files[name])
        except LoopcoderError as found:
            error = found
            break
        except OSError as found:
            error = _not_written(part, found)
            break
        if fault is not None:
            faults.append(fault)
        moved()
    same_error_on_all(error)
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, faults)
    return [fault for of_rank in gathered for fault in of_rank]


def _not_written(part: Path, error: OSError) -> InputError:
    return InputError.of(
        f"cannot write {error.filename or part}: {error.strerror or error}",
        "a checkpoint is fetched from a store to there",
        "a run_dir that can be written, then the same command",
    )


def _finish(part: Path) -> None:
    """Make what was fetched a checkpoint."""
    folder = part.with_suffix("")
    if folder.exists():  # a save that was killed left it
        shutil.rmtree(folder)
    sync_folder(part)  # of which each rank has written its share
    part.rename(folder)
    sync_folder(folder.parent)


def forget_later(asked: CheckpointConfig, run_dir: Path) -> list[str]:
    """Set aside in the store what is later than the step that the run is to go back to, once that
    is accepted and before the folder says that it has gone back (rank 0). Returns what is to be
    said.

    Raises:
        LoopcoderError: the store fails.
    """
    if asked.store is None or asked.step is None or not goes_back(run_dir / "checkpoints", asked):
        return []
    notes = []
    for stored in copies(open_store(asked.store)):
        if stored.step > asked.step and stored.manifest() is not None:
            stored.set_aside("later")
            notes.append(f"{stored.url} is set aside there (later): checkpoint.step={asked.step}")
    return notes
