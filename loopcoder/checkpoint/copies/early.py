"""What a start needs of a checkpoint in the store before its shards are there: its small files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.choice import goes_back
from loopcoder.checkpoint.copies.owner import check_owner
from loopcoder.checkpoint.copies.run_files import fetch_run_files, put
from loopcoder.checkpoint.copies.stored import copies, open_store
from loopcoder.checkpoint.copies.wanted import Wanted, choose, refuse_if_new
from loopcoder.checkpoint.pinned import RECORD
from loopcoder.config.schema import CheckpointConfig
from loopcoder.errors import Unreachable
from loopcoder.storage.writing import WritableStore


def bring_back(
    asked: CheckpointConfig, run_dir: Path, say: Callable[[str], None], *, decides: bool
) -> bool:
    """Fetch from its store what a run needs to check its start, before anything long is done.

    Args:
        decides: It is rank 0 or will start the ranks, and finds out whether the store may be
            written; else it only fetches what the folder lacks.

    Returns whether there is something to fetch when the ranks have met.

    Raises:
        InputError: the store may not be written, or is another run's.
        Unreachable: it does not answer, and the run has no checkpoint of its own to go on from.
    """
    if asked.store is None:
        return False
    if not decides and (run_dir / RECORD).exists():
        return False
    store = open_store(asked.store)
    try:
        if decides:
            store.try_out()
        check_owner(store, run_dir, asked)
        wanted, notes = first_files(store, run_dir, asked, cleans=decides)
    except Unreachable as error:
        say(goes_on_without(run_dir, asked, error, cleans=decides))
        return False
    for note in notes:
        say(note)
    return wanted is not None


def goes_on_without(
    run_dir: Path, asked: CheckpointConfig, error: Unreachable, *, cleans: bool = True
) -> str:
    """Return what to say of a store that does not answer where a run can start without it; else
    raise that error.

    Args:
        cleans: Let what an earlier start has half fetched count no more; its shards stay, for the
            start that fetches the rest.
    """
    own = layout.complete(run_dir / "checkpoints")
    if not own or goes_back(run_dir / "checkpoints", asked):
        raise error
    for part in layout.parts(run_dir / "checkpoints") if cleans else ():
        (part.path / layout.MANIFEST).unlink(missing_ok=True)
    return (
        f"warning: {str(error).splitlines()[0]}; the run goes on from its own step "
        f"{own[-1].step}, without knowing whether the store has a newer one"
    )


def first_files(
    store: WritableStore,
    run_dir: Path,
    asked: CheckpointConfig,
    *,
    cleans: bool = True,
    sets_aside: bool = False,
) -> tuple[Wanted | None, list[str]]:
    """Choose what is to be fetched; put its small files into step_N.part, and into the run's folder
    what that lacks. Returns the choice, and what is to be said.

    Args:
        cleans: Remove what earlier starts fetched and this one does not want.
        sets_aside: Let what the run left for good count no more in the store.

    Raises:
        LoopcoderError: the store fails, or has not what is asked for.
    """
    if not layout.complete(run_dir / "checkpoints") and copies(store):
        refuse_if_new(store, asked)
        fetch_run_files(store, run_dir)  # which say what was undone
    choice = choose(store, run_dir, asked)
    wanted, notes = choice.wanted, list(choice.notes)
    if sets_aside:
        for stored, word, why in choice.aside:
            stored.set_aside(word)
            notes.append(f"{stored.url} is set aside there ({word}): {why}")
    folder = None
    if wanted is not None:
        folder = layout.step_folder(run_dir, wanted.step)
        folder = folder.with_name(folder.name + layout.PART)
        for name, content in wanted.small.items():
            put(folder / name, content)
        put(folder / layout.MANIFEST, wanted.manifest)
    for part in (run_dir / "checkpoints").glob(f"step_*{layout.PART}") if cleans else ():
        if part != folder:
            shutil.rmtree(part, ignore_errors=True)
    return wanted, notes
