"""The documents that a corpus is made of, by chunk: what is left after copies are dropped and files
of repositories joined.

The first chunks are those of the input, without what was joined; those of repositories follow.
Without data.build.repository they are the chunks of the input without copies, and no more.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dedup import stages as dedup
from data_pipeline.repositories.stages import (
    Joined,
    Scattered,
    bucket_of,
    documents_folder,
    is_on,
    moved_file,
    places_folder,
)
from data_pipeline.schema import Document, Tally
from data_pipeline.tasks.chunks import Chunk, read_chunk
from data_pipeline.tasks.places import ENDS, PLACES, Places
from data_pipeline.tasks.work import Work, read_sealed


def num_chunks(work: Work) -> int:
    """Return how many chunks there are."""
    return len(work.chunks) + len(work.joined)


def text_bytes(work: Work, chunk: int) -> int:
    """Return the UTF-8 bytes of a chunk, with copies."""
    if (joined := _joined(work, chunk)) is not None:
        return sum(joined.text_bytes.values())
    moved = work.result(Scattered, chunk).moved_bytes if is_on(work) else 0
    return work.text_bytes(chunk) - moved


def kept(work: Work, chunk: int, tally: Tally) -> Iterator[Document]:
    """Yield the documents of a chunk.

    Args:
        work: The build.
        chunk: Number of the chunk.
        tally: Of dropping copies; counts those of the chunk, with what was joined.

    Raises:
        InputError: something that was written before was changed; it may show only at the end.
    """
    if (joined := _joined(work, chunk)) is not None:
        yield from read_chunk(documents_folder(work), joined)
        return
    found = dedup.kept(work, chunk, tally)
    if not is_on(work):
        yield from found
        return
    for document, moved in zip(found, _moved(work, chunk), strict=True):
        if not moved:
            yield document


def kept_rows(work: Work, chunk: int) -> NDArray[np.int64]:
    """Return the rows in the chunk of the documents that `kept` yields."""
    if (joined := _joined(work, chunk)) is not None:
        return np.arange(joined.documents)
    rows = dedup.kept_rows(work, chunk)
    if not is_on(work):
        return rows
    moved = np.frombuffer(_moved(work, chunk), dtype=bool)
    return np.asarray(rows[~moved])


def places_of(work: Work, chunk: int) -> Places:
    """Return where the documents of a chunk come from, by their row in it."""
    if (joined := _joined(work, chunk)) is None:
        return dedup.places_of(work, chunk)
    folder = places_folder(work, joined)
    # they may have been joined before lists were asked for
    if not work.data.build.list_drops or not folder.exists():
        return Places(None)
    done = work.done(Joined, bucket_of(joined))
    for name in (PLACES, ENDS):  # read in places only
        done.file(folder / name, contents=False)
    return Places(folder)


def _joined(work: Work, chunk: int) -> Chunk | None:
    """Return a chunk of repositories; None for one of the input."""
    number = chunk - len(work.chunks)
    return work.joined[number] if number >= 0 else None


def _moved(work: Work, chunk: int) -> bytes:
    return read_sealed(moved_file(work, chunk), work.folder)
