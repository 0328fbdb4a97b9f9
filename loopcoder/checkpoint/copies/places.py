"""A checkpoint from wherever it is: a folder, or a URL, of which this machine then keeps a copy.

    CACHE/checkpoints/KEY/step_NNNNNNNN/         KEY follows from its URL and its manifest
    CACHE/checkpoints/KEY/looked/step_NNNNNNNN/  without its shards, for those who only look

What was fetched stays until somebody deletes it. Any number of processes may ask at once: the first
fetches, the others wait.
"""

from __future__ import annotations

import os
import shutil
import sys
from functools import lru_cache, partial
from pathlib import Path

import xxhash

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.copies.download import fetch_file
from loopcoder.checkpoint.copies.run_files import put
from loopcoder.checkpoint.copies.stored import (
    CHECKPOINTS,
    StoredCheckpoint,
    copies_in,
    damaged,
    manifest_of,
    open_store,
)
from loopcoder.checkpoint.format import Checkpoint
from loopcoder.errors import InputError
from loopcoder.storage.digest import fingerprint
from loopcoder.storage.files import in_words, sync_folder
from loopcoder.storage.folders import make_folder
from loopcoder.storage.lock import hold
from loopcoder.storage.remote import is_stored

_LOOKED = "looked"


def find_at(
    place: str, cache: Path, field: str | None = None, *, shards: bool = True
) -> Checkpoint:
    """Return one checkpoint from its folder or URL, from a folder or URL of several, or from a
    run's: the newest complete one, fetched if it has a URL.

    Args:
        cache: Where the copies of this machine are.
        field: Of the config, which names the place.
        shards: False: they may be missing of what comes from a URL.

    Raises:
        InputError: there is none, or it is damaged.
        LoopcoderError: its store does not answer; the disk is full.
    """
    return _fetched(place, cache, shards) if is_stored(place) else layout.find(Path(place), field)


@lru_cache(maxsize=16)  # a command asks for it several times, and means one
def _newest(url: str) -> StoredCheckpoint:
    return whole_at(url)[-1]


@lru_cache(maxsize=32)
def _fetched(url: str, cache: Path, shards: bool) -> Checkpoint:
    return fetch(_newest(url), cache, shards=shards)


def all_at(url: str, cache: Path) -> list[Checkpoint]:
    """Fetch every checkpoint of a URL, oldest first; raises as `find_at`."""
    return [fetch(stored, cache) for stored in whole_at(url)]


def stored_at(url: str) -> list[StoredCheckpoint]:
    """Return the folders of checkpoints at the URL of one, of a folder of them or of a run, oldest
    first, complete or not.

    Raises:
        InputError: there is none.
        LoopcoderError: the store does not answer.
    """
    url = url.rstrip("/")
    store = open_store(url)
    if name := layout.NAME.fullmatch(url.rpartition("/")[2]):
        return [StoredCheckpoint(store, int(name[1]))]
    for folder in (store, store.below(CHECKPOINTS)):
        if found := copies_in(folder):
            return found
    raise _none(url)


def whole_at(url: str) -> list[StoredCheckpoint]:
    """Return the complete ones of `stored_at`; raises as that."""
    if found := [one for one in stored_at(url) if one.manifest() is not None]:
        return found
    raise _none(url)


def _none(url: str) -> InputError:
    return InputError.of(
        f"{url} holds no complete checkpoint",
        f"a checkpoint is a folder step_NNNNNNNN with a {layout.MANIFEST}, which is written last",
        "give the URL of a checkpoint, of a run's copies (checkpoint.store), or of several",
    )


def fetch(stored: StoredCheckpoint, cache: Path, *, shards: bool = True) -> Checkpoint:
    """Return the copy of this machine, fetched and compared if there is none yet.

    Args:
        shards: False: one without them will do.
    """
    manifest = stored.manifest()
    if manifest is None:
        raise _none(stored.url)
    files = manifest_of(stored, manifest)
    key = fingerprint(stored.url, xxhash.xxh3_128_hexdigest(manifest))
    folder = cache / CHECKPOINTS / key / f"step_{stored.step:08d}"
    if not shards and not (folder / layout.MANIFEST).is_file():
        files = {n: entry for n, entry in files.items() if not layout.SHARD.fullmatch(n)}
        folder = folder.parent / _LOOKED / folder.name
    checkpoint = Checkpoint(folder, stored.step, stored.url)
    if (folder / layout.MANIFEST).is_file():
        return checkpoint
    make_folder(folder.parent, "data.build.cache_dir")
    part = folder.with_name(folder.name + layout.PART)
    with hold(folder.with_suffix(".lock"), partial(_waits, stored.url), needed=False):
        if (folder / layout.MANIFEST).is_file():
            return checkpoint
        size = in_words(sum(entry["bytes"] for entry in files.values()))
        if shards:
            _say(f"fetching {stored.url} ({size}) to {folder}")
        for name in sorted(files):
            if (fault := fetch_file(stored.store, name, part / name, files[name])) is not None:
                raise damaged(fault)
        put(part / layout.MANIFEST, manifest)
        if (folder / layout.MANIFEST).is_file():  # where files cannot be locked, of another process
            shutil.rmtree(part, ignore_errors=True)
            return checkpoint
        if folder.exists():  # somebody removed its manifest
            shutil.rmtree(folder)
        part.rename(folder)
        sync_folder(folder.parent)
    return checkpoint


def _waits(url: str, holder: str) -> None:
    _say(f"waiting for process {holder}, which fetches {url}")


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"checkpoint: {text}", file=sys.stderr, flush=True)
