"""The files of a checkpoint's shards: whose they are, and what their own metadata says of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch.distributed as dist

from loopcoder.checkpoint.format import SHARD, writer_of
from loopcoder.storage.files import FileEntry, missed_within, synced_entry


@dataclass(frozen=True)
class Written:
    """What a rank has written into the folder of a checkpoint, as it sees it."""

    host: str
    entries: dict[str, FileEntry]


def written_here(folder: Path, hashed: Mapping[str, FileEntry] | None = None) -> Written:
    """Sync and hash the shards of this rank, and on rank 0 everything that is no shard.

    Every rank sees at least its own files at once, whatever disk that is.

    Args:
        hashed: Entries of shards that their writer has synced and hashed already.
    """
    rank, known = dist.get_rank(), hashed or {}
    mine = [path for path in sorted(folder.iterdir()) if writer_of(path.name) == rank]
    entries = {path.name: known.get(path.name) or synced_entry(path) for path in mine}
    return Written(socket.gethostname(), entries)


def shard_entries(folder: Path, rank: int) -> dict[str, FileEntry]:
    """Sync and hash the shards that a rank has written."""
    shards = (path for path in sorted(folder.iterdir()) if SHARD.fullmatch(path.name))
    return {path.name: synced_entry(path) for path in shards if writer_of(path.name) == rank}


def fault_of_shards(
    folder: Path,
    needed: Mapping[str, int],
    written: Sequence[Written],
    within_s: float,
    now: Callable[[], float] = time.monotonic,
) -> str | None:
    """Return what keeps a checkpoint from being whole where rank 0 looks; None: nothing.

    Args:
        needed: What the metadata asks for (`unpickled.metadata_of`).
        written: What each rank says that it has written, by rank.
        within_s: How long a network disk may lag behind what the others wrote.
    """
    entries = {name: entry for part in written for name, entry in part.entries.items()}
    for name, size in needed.items():
        if name not in entries:
            rank = writer_of(name)
            return f"rank {rank} ({written[rank].host}) has not written {name}"
        if entries[name]["bytes"] < size:
            return f"{name} has {entries[name]['bytes']:,} bytes, its metadata asks for {size:,}"
    missed = missed_within(within_s, partial(_unseen, folder, entries), now)
    if missed is None:
        return None
    rank = writer_of(missed)
    return (
        f"rank 0 ({written[0].host}) does not see {missed} in {folder.absolute()}, which rank "
        f"{rank} ({written[rank].host}) wrote, after {within_s:g} s (checkpoint.visible_within_s)"
    )


def _unseen(folder: Path, entries: Mapping[str, FileEntry]) -> str | None:
    sizes: dict[str, int] = {}
    with suppress(OSError):
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    return next((n for n, entry in entries.items() if sizes.get(n) != entry["bytes"]), None)
