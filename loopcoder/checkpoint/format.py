"""The checkpoint folder: `checkpoints/step_NNNNNNNN/`, complete when its manifest is there.

    state.json      format_version, step, data position, num_loops, tokenizer, sizes
    config.yaml     the resolved config of the run that wrote it
    tokenizer.json, token_bytes.npy
                    what decodes its tokens, from the corpus
    *.distcp, ...   megatron-core's torch_dist shards, resharded on load to any layout
    manifest.json   size and hash of every file above; written last

There is no pointer to the latest: the newest complete folder is the latest. Names inside contain
neither a loop index nor anything of the layout.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from loopcoder.checkpoint.state import FORMAT_VERSION, CheckpointState, UnknownFormat
from loopcoder.config.compose import load_config
from loopcoder.config.schema import Config
from loopcoder.errors import InputError
from loopcoder.storage.files import fault_of

MANIFEST = "manifest.json"
STATE = "state.json"
CONFIG = "config.yaml"
_NAME = re.compile(r"step_(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    step: int

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
            raise _corrupt(self, f"{self.path / STATE} cannot be understood: {error}") from error

    def config(self) -> Config:
        """Read config.yaml; the reader of its data is the one that state.json records."""
        return trained_with(self.path, self.state().reader)


def trained_with(folder: Path, reader: Literal["megatron", "packed"] | None = None) -> Config:
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


def complete(folder: Path) -> list[Checkpoint]:
    """Return the complete checkpoints in a `checkpoints/` folder, oldest first."""
    found = []
    for path in sorted(folder.glob("step_*")) if folder.is_dir() else []:
        name = _NAME.fullmatch(path.name)
        if name and (path / MANIFEST).is_file():
            found.append(Checkpoint(path, int(name[1])))
    return found


def own_checkpoint(run_dir: Path, resume: Literal["auto", "never", "require"]) -> Checkpoint | None:
    """Return the checkpoint that a run continues from, if it has one.

    Raises InputError where resume=require finds none, or never would overwrite.
    """
    folder = run_dir / "checkpoints"
    own = complete(folder)
    if resume == "never" and own:
        raise InputError.of(
            f"checkpoint.resume=never, but {folder} has checkpoints up to step {own[-1].step}",
            "a new run in this folder would mix with the old one",
            "run_dir=ANOTHER_FOLDER, or checkpoint.resume=auto to continue",
        )
    if resume == "require" and not own:
        raise InputError.of(
            f"checkpoint.resume=require, but {folder} has no complete checkpoint",
            "there is nothing to continue from",
            "checkpoint.resume=auto to start anew, or the right run_dir=",
        )
    return own[-1] if own else None


def incomplete(folder: Path) -> list[Path]:
    """Return what a killed run left behind: step folders without a manifest."""
    return [p for p in sorted(folder.glob("step_*")) if p.is_dir() and not (p / MANIFEST).is_file()]


def find(path: Path) -> Checkpoint:
    """Return one checkpoint from its folder, from a folder of them, or from a run folder: the
    newest complete one."""
    path = path.expanduser()
    if (path / MANIFEST).is_file() and (path / STATE).is_file():
        name = _NAME.fullmatch(path.resolve().name)
        named = Checkpoint(path, int(name[1]) if name else 0)
        return Checkpoint(path, named.state().step)
    for folder in (path, path / "checkpoints"):
        if found := complete(folder):
            return found[-1]
    if not path.exists():
        raise InputError.of(
            f"there is no folder {path}",
            "a checkpoint, a folder of them or a run's folder is looked for there",
            "the folder as `loopcoder runs` lists it",
        )
    raise InputError.of(
        f"{path} holds no complete checkpoint",
        f"a checkpoint is a folder step_NNNNNNNN with a {MANIFEST}, which is written last",
        "give the folder of a checkpoint, of a run, or of several checkpoints",
    )


def verify(
    checkpoint: Checkpoint, level: Literal["hash", "size", "none"], part: int = 0, parts: int = 1
) -> None:
    """Compare the files with the manifest; with several ranks each hashes its part of them.

    Raises InputError naming the file and what to do.
    """
    if level == "none":
        return
    manifest = _read_json(checkpoint, MANIFEST, "files")
    for index, (name, wanted) in enumerate(sorted(manifest["files"].items())):
        file = checkpoint.path / name
        fact = fault_of(file, wanted, contents=level == "hash" and index % parts == part)
        if fact is not None:
            raise _corrupt(checkpoint, fact)


def _read_json(checkpoint: Checkpoint, name: str, needed: str) -> dict[str, Any]:
    """Read one of a checkpoint's own files; a damaged one is an error with advice."""
    file = checkpoint.path / name
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise _corrupt(checkpoint, f"{file} cannot be read: {error}") from error
    if not isinstance(value, dict) or needed not in value:
        raise _corrupt(checkpoint, f"{file} has no '{needed}'")
    return value


def _corrupt(checkpoint: Checkpoint, fact: str) -> InputError:
    older = [c for c in complete(checkpoint.path.parent) if c.step < checkpoint.step]
    aside = checkpoint.path.with_name(f"corrupt_{checkpoint.path.name}")
    fix = f"mv {checkpoint.path} {aside} and start again"
    fix += (
        f": it continues from step {older[-1].step}" if older else ": there is no older checkpoint"
    )
    return InputError.of(
        fact, "the checkpoint is damaged; training on it would be silently wrong", fix
    )


def prune(folder: Path, keep: int | None, spared: int | None = None) -> list[Checkpoint]:
    """Delete all but the newest `keep` complete checkpoints, and return what was deleted.

    Args:
        spared: Step whose checkpoint stays besides.

    The manifest goes first, so that a checkpoint half deleted is never taken for a complete one.
    """
    if keep is None:
        return []
    doomed = [c for c in complete(folder) if c.step != spared][:-keep]
    for checkpoint in doomed:
        (checkpoint.path / MANIFEST).unlink()
        shutil.rmtree(checkpoint.path)
    return doomed
