"""The files of a run's folder that its store has too, beside the checkpoints.

The config, the record and tokenizer of the corpus, metrics and events, what was rewound: what a run
writes directly into its folder. Folders (plots, TensorBoard, wandb, profiles) are not copied.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from loopcoder.checkpoint.choice import WENT_BACK
from loopcoder.checkpoint.copies.owner import NAMES_RUN
from loopcoder.checkpoint.copies.stored import CHECKPOINTS
from loopcoder.checkpoint.put_off import PUT_OFF
from loopcoder.checkpoint.rewind import REWINDS
from loopcoder.storage.files import sync, sync_folder
from loopcoder.storage.writing import WritableStore

_WENT_BACK = f"{CHECKPOINTS}/{WENT_BACK}"
_KINDS = (".json", ".jsonl", ".yaml", ".npy")
"""What a run writes; a store may have other things beside it."""
_COME_AND_GO = (REWINDS, PUT_OFF, _WENT_BACK)
"""What a run removes again, and what then has to go from its store."""


def send_run_files(store: WritableStore, run_dir: Path) -> None:
    """Copy the files as they are now.

    Raises:
        LoopcoderError: the store fails.
    """
    sent = set()
    for name in _there(run_dir):
        with suppress(FileNotFoundError):  # it came and went
            store.write(name, (run_dir / name).read_bytes(), ())
            sent.add(name)
    store.remove([name for name in _COME_AND_GO if name not in sent], ())


def _there(run_dir: Path) -> Iterator[str]:
    with os.scandir(run_dir) as found:
        for entry in sorted(found, key=lambda e: e.name):
            if entry.is_file() and _is_own(entry.name):
                yield entry.name
    if (run_dir / _WENT_BACK).is_file():
        yield _WENT_BACK


def _is_own(name: str) -> bool:
    if name == NAMES_RUN:  # of which a folder and a store have each their own
        return False
    return name == "wandb_id" or (name.endswith(_KINDS) and not name.startswith("."))


def fetch_run_files(store: WritableStore, run_dir: Path) -> None:
    """Bring back the files that the folder of a run has not.

    Any number of processes may do it at once.

    Raises:
        LoopcoderError: the store fails.
        OSError: the disk does.
    """
    for name in [*filter(_is_own, store.names()), _WENT_BACK]:
        if not (run_dir / name).exists() and (content := store.found(name)) is not None:
            put(run_dir / name, content)


def put(path: Path, content: bytes) -> None:
    """Write a whole file, which several processes may do at once with the same content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            sync(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
