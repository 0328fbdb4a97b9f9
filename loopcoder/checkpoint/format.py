"""The checkpoint folder: `checkpoints/step_NNNNNNNN/`, complete when its manifest is there.

    state.json      format_version, step, data position, num_loops, tokenizer, sizes
    config.yaml     the resolved config of the run that wrote it
    tokenizer.json, token_bytes.npy
                    what decodes its tokens, from the corpus
    digest.json     the sum of every tensor's bits, whatever the layout; see digest.py
    *.distcp, ...   megatron-core's torch_dist shards, resharded on load to any layout
    manifest.json   size and hash of every file above; written last

There is no pointer to the latest: the newest complete folder is the latest. Names inside contain
neither a loop index nor anything of the layout. step_N.damaged, .later, .undone and .replaced are
set aside; step_N.part is on its way from a store.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from loopcoder.checkpoint.state import FORMAT_VERSION, CheckpointState, UnknownFormat
from loopcoder.config.compose import load_config
from loopcoder.config.schema import Config
from loopcoder.errors import InputError, Problem, counted
from loopcoder.storage.files import FileEntry, fault_of

MANIFEST = "manifest.json"
STATE = "state.json"
CONFIG = "config.yaml"
PART = ".part"
"""Suffix of a checkpoint that is on its way from a store."""
SHARD = re.compile(r"__(\d+)_\d+\.distcp")
NAME = re.compile(r"step_(\d{8})")
_NAMED = 8
"""Steps that a message names at most."""
Level = Literal["hash", "small", "size", "none"]
"""What is compared with the manifest: `hash` all bytes; `small` the sizes of shards and all bytes
besides; `size` the sizes; `none` nothing."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    step: int
    url: str | None = None
    """Of the copy that its files were fetched from; None: it is nobody's copy."""

    @property
    def place(self) -> str:
        """What names it to a user."""
        return self.url or str(self.path)

    def state(self) -> CheckpointState:
        """Read state.json; a damaged one and an unknown format are errors with advice."""
        content = _read_json(self, STATE, "format_version")
        try:
            return CheckpointState.from_json(content)
        except UnknownFormat as error:
            raise InputError.of(
                f"{self.path} has checkpoint format {error}",
                f"this version of loopcoder reads formats up to {FORMAT_VERSION}",
                "use the version of loopcoder that wrote it, or another checkpoint",
            ) from error
        except ValueError as error:
            raise corrupt(self, [f"{self.path / STATE} cannot be understood: {error}"]) from error

    def config(self) -> Config:
        """Read config.yaml; the reader of its data is the one that state.json records."""
        return trained_with(self.path, self.state().reader)


def trained_with(
    folder: Path, reader: Literal["megatron", "packed", "shuffled"] | None = None
) -> Config:
    """Read the config.yaml of a run or a checkpoint.

    Args:
        reader: On record; None: what the config says, or where it is of a version that had no
            choice, megatron.
    """
    config = load_config(folder / CONFIG)
    if reader is None and config.data.reader != "auto":
        return config
    return replace(config, data=replace(config.data, reader=reader or "megatron"))


def step_folder(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:08d}"


def writer_of(name: str) -> int:
    """Return the rank that wrote a file of a checkpoint: what is no shard is of rank 0."""
    shard = SHARD.fullmatch(name)
    return int(shard[1]) if shard else 0


def unused(folder: Path, why: str) -> Path:
    """Return a name for a checkpoint that is set aside, which no checkpoint has: step_N.WHY."""
    names = (f"{folder.name}.{why}{f'-{n}' if n else ''}" for n in count())
    return next(p for p in map(folder.with_name, names) if not os.path.lexists(p))


def complete(folder: Path) -> list[Checkpoint]:
    """Return the complete checkpoints in a `checkpoints/` folder, oldest first."""
    found = []
    for path in sorted(folder.glob("step_*")) if folder.is_dir() else []:
        name = NAME.fullmatch(path.name)
        if name and _is_complete(path):
            found.append(Checkpoint(path, int(name[1])))
    return found


def _is_complete(path: Path) -> bool:
    try:
        return (path / MANIFEST).is_file()
    except OSError:  # of somebody else, or on a disk that fails: it is none that can be used
        return False


def incomplete(folder: Path) -> list[Path]:
    """Return what a killed run left behind: step folders without a manifest."""
    found = [p for p in sorted(folder.glob("step_*")) if NAME.fullmatch(p.name)]
    return [path for path in found if path.is_dir() and not _is_complete(path)]


def parts(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints that are on their way from a store, of which the small files are there
    at least, oldest first."""
    found = []
    for path in sorted(folder.glob(f"step_*{PART}")):
        name = NAME.fullmatch(path.stem)
        if name and _is_complete(path):
            found.append(Checkpoint(path, int(name[1])))
    return found


def find(path: Path, field: str | None = None) -> Checkpoint:
    """Return one checkpoint from its folder, from a folder of them, or from a run folder: the
    newest complete one.

    Args:
        field: Of the config, which names the path.

    Raises:
        InputError: there is none.
    """
    path = path.expanduser()
    if (path / MANIFEST).is_file() and (path / STATE).is_file():
        name = NAME.fullmatch(path.resolve().name)
        named = Checkpoint(path, int(name[1]) if name else 0)
        return Checkpoint(path, named.state().step)
    for folder in (path, path / "checkpoints"):
        if found := complete(folder):
            return found[-1]
    beside = path.absolute().parent
    near = next((f for f in (beside, beside / "checkpoints") if complete(f)), None)
    if not path.exists():
        raise InputError.of(
            f"there is no folder {path}" + (f" ({field}={path})" if field else ""),
            "a checkpoint, a folder of them or a run's folder is looked for there",
            f"name one that is there: {contents(near)}"
            if near
            else "the folder as `loopcoder runs` lists it",
        )
    if (path / "config.json").is_file():
        raise InputError.of(
            f"{path} is a folder for transformers" + (f" ({field}={path})" if field else ""),
            "it has weights under other names and in another order than a checkpoint",
            f"loopcoder import input={path} output=DIR, and then DIR",
        )
    raise InputError.of(
        f"{path} holds no complete checkpoint",
        f"a checkpoint is a folder step_NNNNNNNN with a {MANIFEST}, which is written last",
        f"name another one: {contents(near)}"
        if near
        else "give the folder of a checkpoint, of a run, or of several checkpoints",
    )


def contents(folder: Path, but: Path | None = None) -> str:
    """Say for a message which complete checkpoints are in a folder, besides one."""
    found = [str(c.step) for c in complete(folder) if but is None or c.path.name != but.name]
    if not found:
        return (
            f"{folder} has no {'complete checkpoint' if but is None else 'other that is complete'}"
        )
    *before, last = found[-_NAMED:]
    steps = f"steps {', '.join(before)} and {last}" if before else f"step {last}"
    older = len(found) - _NAMED
    more = f", and {counted(older, 'older one')}" if older > 0 else ""
    return f"{folder} has complete checkpoints of {steps}{more}"


def faults(checkpoint: Checkpoint, level: Level, part: int = 0, parts: int = 1) -> Iterator[str]:
    """Compare the files with the manifest; yield what is wrong, a fact for each file.

    Args:
        part: Of several ranks each reads its part of the files, and looks at the sizes of all.
    """
    if level == "none":
        return
    try:
        files = files_of(checkpoint)
    except InputError as error:
        yield error.problems[0].fact
        return
    for index, (name, wanted) in enumerate(sorted(files.items())):
        file = checkpoint.path / name
        reads = level == "hash" or (level == "small" and not SHARD.fullmatch(name))
        fact = fault_of(file, wanted, contents=reads and index % parts == part)
        if fact is not None:
            yield fact


def files_of(checkpoint: Checkpoint) -> dict[str, FileEntry]:
    """Return what the manifest says of each file.

    Raises:
        InputError: the manifest is damaged.
    """
    file = checkpoint.path / MANIFEST
    try:
        return entries(file.read_bytes())
    except OSError as error:
        raise corrupt(checkpoint, [f"{file} cannot be read: {error}"]) from error
    except ValueError as error:
        raise corrupt(checkpoint, [f"{file} cannot be understood: {error}"]) from error


def entries(manifest: bytes) -> dict[str, FileEntry]:
    """Return what the content of a manifest says of each file.

    Raises:
        ValueError: it is damaged, or names what is not directly in the folder.
    """
    content = json.loads(manifest)
    if not isinstance(content, dict) or "files" not in content:
        raise ValueError("it has no 'files'")
    files = TypeAdapter(dict[str, FileEntry]).validate_python(content["files"])
    for name in files:
        if name in ("", ".", "..", MANIFEST) or "/" in name or "\0" in name:
            raise ValueError(f"{name!r} is no file of a checkpoint")
    return files


def _read_json(checkpoint: Checkpoint, name: str, needed: str) -> dict[str, Any]:
    """Read one of a checkpoint's own files; a damaged one is an error with advice."""
    file = checkpoint.path / name
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise corrupt(checkpoint, [f"{file} cannot be read: {error}"]) from error
    if not isinstance(value, dict) or needed not in value:
        raise corrupt(checkpoint, [f"{file} has no '{needed}'"])
    return value


def corrupt(checkpoint: Checkpoint, facts: Sequence[str]) -> InputError:
    """Return the error that a checkpoint is damaged that somebody has named."""
    path = checkpoint.path.absolute()
    why = "the checkpoint is damaged; what would be made of it would be silently wrong"
    fix = f"name another one: {contents(path.parent, but=path)}"
    return InputError([Problem(fact, why, fix) for fact in facts])
