"""A checkpoint from wherever weights are: a run, a URL, or a folder for transformers.

Such a folder is imported once into the cache, CACHE/imported/KEY/NAME, where KEY follows from its
files and NAME is its own, by which reports call it; it stays there until somebody deletes it.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.copies.places import find_at
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.config.identity import as_folder
from loopcoder.data.places import tokenizer_file
from loopcoder.hf.config import from_released
from loopcoder.hf.folder import CONFIG, ReleasedFolder, is_folder
from loopcoder.hf.importing import import_folder, plan
from loopcoder.storage.digest import fingerprint
from loopcoder.storage.folders import make_folder
from loopcoder.storage.lock import hold
from loopcoder.storage.remote import is_stored

_VERSION = 3
"""Of what an import makes of a folder."""


def checkpoint_at(place: str, cache: Path) -> Checkpoint:
    """Return the checkpoint that a path or a URL names, or that a folder for transformers becomes.

    Raises:
        InputError: there is none, or it is damaged.
        LoopcoderError: its store does not answer; the disk is full.
    """
    folder = Path(place).expanduser()
    if is_stored(place) or not is_folder(folder):
        return find_at(place, cache)
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    about = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    key = fingerprint(_VERSION, str(folder.resolve()), about)
    target = cache / "imported" / key / as_folder(folder.resolve().name)
    make_folder(target.parent, "data.build.cache_dir")
    with hold(target.parent.with_suffix(".lock"), partial(_waits, folder), needed=False):
        if not target.is_dir():
            has_tokenizer = tokenizer_file(folder).is_file()
            source, tokenizer = ReleasedFolder(folder), "" if has_tokenizer else "none"
            rows = from_released(source.config, folder / CONFIG).vocab_size
            # rows that pad would be tokens in the loss, and nothing is trained that they would help
            planned = plan(source, [f"model.vocab_size={rows}"], tokenizer)
            _say(f"importing {folder} to {target}")
            import_folder(planned, target, _say)
    return layout.find(target)


def _waits(folder: Path, holder: str) -> None:
    _say(f"waiting for process {holder}, which imports {folder}")


def _say(text: str) -> None:
    print(f"weights: {text}", file=sys.stderr, flush=True)
