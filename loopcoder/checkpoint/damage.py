"""Which tensors of a damaged shard are affected."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator

from loopcoder.checkpoint.format import Checkpoint
from loopcoder.checkpoint.unpickled import read_metadata
from loopcoder.errors import InputError

_NAMED = 5


def with_tensors(checkpoint: Checkpoint, facts: list[str]) -> list[str]:
    """Add to what is wrong with shards the tensors that are damaged, where they can be found."""
    try:
        files = {info.relative_path for info in read_metadata(checkpoint).storage_data.values()}
    except InputError:
        return facts
    out = []
    for fact in facts:
        file = next((f for f in files if fact.startswith(f"{checkpoint.path / f} ")), None)
        names = list(dict.fromkeys(_damaged(checkpoint, file))) if file else []
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        out.append(fact + (f"; in it {', '.join(names[:_NAMED])}{more}" if names else ""))
    return out


def _damaged(checkpoint: Checkpoint, file: str) -> Iterator[str]:
    """Yield the tensors of a shard whose bytes are not those that were written.

    torch writes each as a zip archive, which has a CRC-32 of every record.
    """
    try:
        with open(checkpoint.path / file, "rb") as shard:
            for index, info in read_metadata(checkpoint).storage_data.items():
                if info.relative_path != file:
                    continue
                shard.seek(info.offset)
                if not _is_whole(shard.read(info.length), info.length):
                    yield index.fqn
    except OSError:  # what cannot be read is named by its file
        return


def _is_whole(content: bytes, length: int) -> bool:
    try:
        return len(content) == length and zipfile.ZipFile(io.BytesIO(content)).testzip() is None
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError):
        return False
