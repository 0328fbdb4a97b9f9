"""A corpus in an object store, as a folder of this machine without its training shards.

    CACHE/corpora/KEY/manifest.json     and all else that is small, as in the corpus itself
    CACHE/corpora/KEY/origin.json       the URL
    CACHE/blocks/                       blocks of the training shards (see block_cache.py)

KEY follows from the URL and the content of the manifest, so that another corpus under the same URL
has another folder. Any number of processes may ask at once: the first fetches, the others wait.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import xxhash

from loopcoder.config.data import DataConfig
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.manifest import MANIFEST, parse_manifest
from loopcoder.data.mask import MASK
from loopcoder.data.places import ORIGIN, check_store, rebuild, small_files
from loopcoder.errors import DiskFull, InputError
from loopcoder.storage.digest import fingerprint
from loopcoder.storage.disk import full_disk_raises
from loopcoder.storage.files import write_bytes, write_json
from loopcoder.storage.folders import make_folder
from loopcoder.storage.lock import hold
from loopcoder.storage.remote import Store, is_url

CORPORA = "corpora"


def cache_folder(data: DataConfig) -> Path:
    """Return the folder where the parts of remote corpora are kept."""
    if data.cache.dir is not None:
        return Path(data.cache.dir).expanduser()
    return default_cache(Path(data.build.cache_dir).expanduser())


def default_cache(corpora: Path) -> Path:
    """Return where the parts of remote corpora are kept unless data.cache.dir says otherwise."""
    return corpora / "remote"


def folder_of(data: DataConfig) -> Path:
    """Return the folder on this machine of the finished corpus that `data.path` names.

    Raises:
        LoopcoderError: it has a URL and cannot be fetched.
    """
    return folder_at(str(data.path), data)


def folder_at(path: str, data: DataConfig) -> Path:
    """Return the folder on this machine of the finished corpus at a path or a URL.

    Args:
        data: Says where parts of remote corpora are kept.

    Raises:
        LoopcoderError: it has a URL and cannot be fetched.
    """
    return mirror(path, cache_folder(data)) if is_url(path) else Path(path).expanduser()


def small_cache(config: Config, corpus: Corpus) -> Iterator[str]:
    """Yield what to say of a cache that has no room for a shard of every domain: the last sequence
    of a stretch ends in another block, which is gone again when its turn comes."""
    needed = 0
    for domain in {domain for stage in config.stages for domain in stage.mixture}:
        member, own = corpus.part(domain)
        if member.url is not None:
            shards = member.manifest["domains"][own]["train"]["shards"]
            files = member.manifest["files"]
            read = [[f for e in (".bin", MASK) if (f := s["prefix"] + e) in files] for s in shards]
            sizes = [sum(files[name]["bytes"] for name in names) for names in read]
            needed += max(sizes, default=0)
    if (limit := config.data.cache.bytes) < needed:
        yield (
            f"warning: data.cache.bytes={limit} is less than the largest shards of the domains "
            f"that are read, {needed:,} bytes: most blocks are fetched more than once; "
            f"data.cache.bytes={needed} has room for them"
        )


@lru_cache(maxsize=16)  # a command asks for its corpus several times
def mirror(url: str, cache: Path) -> Path:
    """Return the folder that has the small files of a corpus in a store, after fetching them.

    Args:
        url: Of the folder that has manifest.json, as fsspec understands it.
        cache: Folder for what is fetched.

    Raises:
        LoopcoderError: something is missing, damaged, cut off or cannot be read; the disk is full.
    """
    store = Store(url)
    content = store.read(MANIFEST)
    where = f"{store.url}/{MANIFEST}"
    manifest = parse_manifest(content, where, rebuild(store.url))
    folder = cache / CORPORA / fingerprint(store.url, xxhash.xxh3_128_hexdigest(content))
    if (folder / MANIFEST).is_file():
        return folder
    make_folder(folder, "data.cache.dir")
    with (
        full_disk_raises(cache, _no_room),
        hold(folder.with_suffix(".lock"), _waits(store.url), needed=False),
    ):
        if (folder / MANIFEST).is_file():
            return folder
        check_store(store, manifest)
        for name in small_files(manifest):
            _fetch(store, name, folder / name, manifest["files"][name]["xxh3_128"])
        write_json(folder / ORIGIN, {"url": store.url})
        write_bytes(folder / MANIFEST, content)  # last: what has it is complete
    return folder


def _no_room(fact: str) -> DiskFull:
    why = "the small files of a corpus in a store are kept there"
    return DiskFull.of(fact, why, "free space there, or data.cache.dir=ANOTHER")


def _fetch(store: Store, name: str, path: Path, wanted: str) -> None:
    """Fetch a file unless it is there; one that is damaged on its way is fetched once more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and xxhash.xxh3_128_hexdigest(path.read_bytes()) == wanted:
        return
    for _ in range(2):
        content = store.read(name)
        if xxhash.xxh3_128_hexdigest(content) == wanted:
            write_bytes(path, content)
            return
    raise InputError.of(
        f"{store.url}/{name} ({len(content):,} bytes) has other content than was written",
        "it was changed after it was built",
        rebuild(store.url),
    )


def _waits(url: str) -> Callable[[str], None]:
    def say(holder: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            line = f"data: waiting for process {holder}, which fetches the small files of {url}"
            print(line, file=sys.stderr, flush=True)

    return say
