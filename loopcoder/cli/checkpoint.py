"""`loopcoder checkpoint`: list the checkpoints of a run, or compare every byte of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.pruning import kept
from loopcoder.cli.listing import table
from loopcoder.cli.options import parse_options
from loopcoder.config.schema import Config
from loopcoder.errors import EXIT_BAD_INPUT, EXIT_DONE, InputError, counted
from loopcoder.optim.schedule import branching_step
from loopcoder.storage.files import in_words, size_of

HELP = """\
List the checkpoints of a run, or compare every byte of them with what was written.

usage: loopcoder checkpoint list DIR [--json]
       loopcoder checkpoint verify DIR [--json]

  loopcoder checkpoint list runs/NAME          step, time, size, layout, state, why it stays
  loopcoder checkpoint verify runs/NAME        hash all files; name what is damaged

DIR is a run, its checkpoints/ or one checkpoint. `list` looks at sizes, `verify` reads everything.

states:
  complete       a run can go on from it
  damaged        a file is not as it was written: a run passes it over
  incomplete     a save that was interrupted; not used
  set aside      step_N.damaged, step_N.later (checkpoint.step went back), step_N.undone (the run
                 went back by itself), step_N.replaced: not used, and never deleted by a run

exit codes: 0 all that could be used are whole, 3 one is damaged"""


@dataclass(frozen=True)
class Shown:
    """What is said of a folder of a checkpoint."""

    path: str
    step: int
    state: str
    time: str
    bytes: int
    layout: str
    """Ranks that wrote it, and how they shared the model; "" where it does not say."""
    kept: str
    """Why it stays; "": it goes when the next ones are saved, or it is not the run's to delete."""
    faults: list[str]


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
    verb, folder = operands[0], Path(operands[1]).expanduser()
    found = list(_shown(folder, reads_all=verb == "verify"))
    if "--json" in options:
        print(json.dumps([asdict(one) for one in found], indent=1))
    else:
        print(_text(found))
    return EXIT_BAD_INPUT if any(one.state == "damaged" for one in found) else EXIT_DONE


def _shown(path: Path, reads_all: bool) -> Iterator[Shown]:
    """Yield what there is to say of each checkpoint, oldest first.

    Raises:
        InputError: there is none.
    """
    folders = _folders(path)
    why = _why_kept(folders[0].parent)
    for folder in folders:
        checkpoint = _named(folder)
        facts: list[str] = []
        state = "set aside" if "." in folder.name else "incomplete"
        if checkpoint is not None:
            facts = _faults(checkpoint, reads_all)
            state = "damaged" if facts else "complete"
        yield Shown(
            path=str(folder),
            step=int(folder.name.partition("_")[2].partition(".")[0] or 0)
            if checkpoint is None
            else checkpoint.step,
            state=state,
            time=f"{datetime.fromtimestamp(folder.stat().st_mtime):%Y-%m-%d %H:%M}",
            bytes=size_of(folder),
            layout="" if facts or checkpoint is None else _layout(checkpoint),
            kept="" if checkpoint is None else why.get(checkpoint.step, ""),
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


def _faults(checkpoint: Checkpoint, reads_all: bool) -> list[str]:
    facts = list(layout.faults(checkpoint, "hash" if reads_all else "size"))
    if facts and reads_all:
        from loopcoder.checkpoint.damage import with_tensors

        return with_tensors(checkpoint, facts)
    try:
        checkpoint.config()
    except InputError as error:
        facts += [problem.fact for problem in error.problems]
    return facts


def _layout(checkpoint: Checkpoint) -> str:
    ranks, parallel = checkpoint.state().world_size, checkpoint.config().parallel
    split = [f"{n}{s}" for n in ("tp", "pp") if (s := getattr(parallel, n)) > 1]
    return " ".join([counted(ranks, "rank"), *split])


def _why_kept(folder: Path) -> dict[int, str]:
    """Return why checkpoints stay by the newest config of their run; {}: it cannot be read."""
    complete = layout.complete(folder)
    for place in (folder.parent, *(c.path for c in reversed(complete))):
        try:
            config: Config = layout.trained_with(place)
        except InputError:
            continue
        spared = branching_step(config.optim, config.train.max_steps, None)
        return kept(complete, config.checkpoint, spared)
    return {}


def _text(found: Sequence[Shown]) -> str:
    rows = [["checkpoint", "step", "time", "size", "layout", "state", "kept"]]
    for one in found:
        size = in_words(one.bytes)
        name, step = Path(one.path).name, str(one.step)
        rows.append([name, step, one.time, size, one.layout, one.state, one.kept])
    faults = [f"{Path(one.path).name}: {fact}" for one in found for fact in one.faults]
    return "\n".join([table(rows), *faults])
