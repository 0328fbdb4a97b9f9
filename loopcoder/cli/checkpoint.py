"""`loopcoder checkpoint`: list the checkpoints of a run, or compare every byte of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.pruning import kept as stays
from loopcoder.checkpoint.pruning import why_not
from loopcoder.cli.copies import Shown, layout_in_words, shown_copies
from loopcoder.cli.listing import table
from loopcoder.cli.options import parse_options
from loopcoder.config.schema import Config
from loopcoder.errors import EXIT_BAD_INPUT, EXIT_DONE, InputError, counted
from loopcoder.optim.schedule import branching_step
from loopcoder.storage.files import in_words, size_of
from loopcoder.storage.remote import is_stored

HELP = """\
List the checkpoints of a run, or compare every byte of them with what was written.

usage: loopcoder checkpoint list DIR|URL [--json]
       loopcoder checkpoint verify DIR|URL [--json]

  loopcoder checkpoint list runs/NAME          step, time, size, layout, state, why it stays
  loopcoder checkpoint verify runs/NAME        hash all files: how many, how much, what is damaged

DIR is a run, its checkpoints/ or one checkpoint, and URL the same in a store (checkpoint.store).
`list` looks at sizes, `verify` reads everything.

states:
  complete       a run can go on from it
  damaged        a file is not as it was written: a run passes it over
  incomplete     a save that was interrupted; not used
  set aside      step_N.damaged, step_N.later (checkpoint.step went back), step_N.undone (the run
                 went back by itself), step_N.replaced: not used, and never deleted by a run

kept: why it stays when the next ones are saved; "stuck": it is to go and cannot be deleted.

exit codes: 0 all that could be used are whole, 3 one is damaged"""


def run(argv: list[str]) -> int:
    """List or verify checkpoints."""
    operands, options = parse_options("checkpoint", argv, flags=["--json"])
    if "--help" in options or not operands:
        print(HELP)
        return EXIT_DONE
    if operands[0] not in ("list", "verify") or len(operands) != 2:
        raise InputError.of(
            f"loopcoder checkpoint {' '.join(operands)}",
            "it takes `list` or `verify`, and one folder",
            "loopcoder checkpoint list runs/NAME",
        )
    reads_all, place = operands[0] == "verify", operands[1]
    found = list((shown_copies if is_stored(place) else _shown)(place, reads_all))
    if "--json" in options:
        print(json.dumps([asdict(one) for one in found], indent=1))
    else:
        print(_verified(found) if reads_all else _listed(found))
    return EXIT_BAD_INPUT if any(one.state == "damaged" for one in found) else EXIT_DONE


def _shown(place: str, reads_all: bool) -> Iterator[Shown]:
    """Yield what there is to say of each checkpoint, oldest first.

    Raises:
        InputError: there is none.
    """
    folders = _folders(Path(place).expanduser())
    why = _why_kept(folders[0].parent)
    for folder in folders:
        checkpoint = _named(folder)
        facts: list[str] = []
        sizes: list[int] = []
        state = "set aside" if "." in folder.name else "incomplete"
        if checkpoint is not None:
            sizes = _sizes(checkpoint)
            facts = _faults(checkpoint, reads_all)
            state = "damaged" if facts else "complete"
        kept = "" if checkpoint is None else why.get(checkpoint.step, "")
        yield Shown(
            path=str(folder),
            step=int(folder.name.partition("_")[2].partition(".")[0] or 0)
            if checkpoint is None
            else checkpoint.step,
            state=state,
            time=f"{datetime.fromtimestamp(folder.stat().st_mtime):%Y-%m-%d %H:%M}",
            bytes=size_of(folder),
            layout=""
            if facts or checkpoint is None
            else layout_in_words(checkpoint.state(), checkpoint.config()),
            kept=kept,
            stuck="" if checkpoint is None or kept or not why else why_not(folder) or "",
            files=len(sizes),
            hashed_bytes=sum(sizes) if reads_all else 0,
            faults=facts,
        )


def _folders(path: Path) -> list[Path]:
    """Return the folders of checkpoints, those that are set aside and incomplete ones too."""
    if (path / layout.MANIFEST).is_file() and (path / layout.STATE).is_file():
        return [path]
    for folder in (path, path / "checkpoints"):
        found = sorted(p for p in folder.glob("step_[0-9]*") if p.is_dir())
        if found:
            return found
    layout.find(path)  # says what is wrong with the path
    raise AssertionError(path)


def _named(folder: Path) -> Checkpoint | None:
    """Return the checkpoint that a folder is; None: no run would take it."""
    there = next((c for c in layout.complete(folder.parent) if c.path == folder), None)
    is_copy = there is None and not folder.name.startswith("step_")
    return layout.find(folder) if is_copy else there


def _sizes(checkpoint: Checkpoint) -> list[int]:
    """Return the bytes of the files of a manifest; [] where it is damaged."""
    with suppress(InputError):
        return [entry["bytes"] for entry in layout.files_of(checkpoint).values()]
    return []


def _faults(checkpoint: Checkpoint, reads_all: bool) -> list[str]:
    facts = list(layout.faults(checkpoint, "hash" if reads_all else "size"))
    if facts and reads_all:
        from loopcoder.checkpoint.damage import with_tensors

        return with_tensors(checkpoint, facts)
    if not facts:  # of what is damaged already, reading would say the same again
        try:
            checkpoint.config()
        except InputError as error:
            return [problem.fact for problem in error.problems]
    return facts


def _why_kept(folder: Path) -> dict[int, str]:
    """Return why checkpoints stay by the newest config of their run; {}: it cannot be read."""
    complete = layout.complete(folder)
    for place in (folder.parent, *(c.path for c in reversed(complete))):
        try:
            config: Config = layout.trained_with(place)
        except InputError:
            continue
        spared = branching_step(config.optim, config.train.max_steps, None)
        return stays(complete, config.checkpoint, spared)
    return {}


def _listed(found: Sequence[Shown]) -> str:
    rows = [["checkpoint", "step", "time", "size", "layout", "state", "kept"]]
    for one in found:
        size = in_words(one.bytes)
        name, step = Path(one.path).name, str(one.step)
        why = "stuck" if one.stuck else one.kept
        rows.append([name, step, one.time, size, one.layout, one.state, why])
    stuck = [f"{Path(one.path).name} is not deleted: {one.stuck}" for one in found if one.stuck]
    return "\n".join([table(rows), *_all_faults(found), *stuck])


def _verified(found: Sequence[Shown]) -> str:
    rows = [["checkpoint", "files", "hashed", "result"]]
    for one in found:
        compared = one.state in ("complete", "damaged")
        result = "whole" if one.state == "complete" else f"{one.state}, not compared"
        if one.state == "damaged":
            result = f"damaged: {counted(len(one.faults), 'fault')}"
        numbers = [f"{one.files:,}", in_words(one.hashed_bytes)] if compared else ["", ""]
        rows.append([Path(one.path).name, *numbers, result])
    return "\n".join([table(rows), *_all_faults(found)])


def _all_faults(found: Sequence[Shown]) -> list[str]:
    return [f"{Path(one.path).name}: {fact}" for one in found for fact in one.faults]
