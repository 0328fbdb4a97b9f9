"""Files of a repository as one document.

    name\\n  path\\n content  path\\n content ...

The text has every byte that is encoded; where the pieces end stands in `meta`. What separates them
in the corpus are control tokens (tokenizer/repositories.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import xxhash

from data_pipeline.schema import MEMBERS, Document

_BORDERS, _KEY = "borders", "repository_key"
"""Keys of `meta`: characters of each piece; what tells the repository from others."""


class File(NamedTuple):
    """A file of a repository."""

    path: str
    """Within the repository."""
    document: Document


class Joined(NamedTuple):
    """A document of a repository, taken apart."""

    name: str
    """Of the repository."""
    files: list[tuple[str, str]]
    """(path, content) of each."""


def join(key: str, name: str, files: Sequence[File]) -> Document:
    """Return the document of some files of one repository, source and language.

    Args:
        key: What tells the repository from others.
        name: Of the repository.
        files: In the order wanted.
    """
    pieces = [f"{name}\n"]
    for path, document in files:
        pieces += [f"{path}\n", document.text]
    ids = "\0".join(document.id for _, document in files)
    first = files[0].document
    package = {n: first.meta[n] for n in ("package",) if n in first.meta}
    return Document(
        id=xxhash.xxh3_128_hexdigest(f"repository\0{ids}".encode()),
        text="".join(pieces),
        domain=first.domain,
        language=first.language,
        source=first.source,
        path=name,
        meta=package
        | {
            _KEY: key,
            _BORDERS: [len(piece) for piece in pieces],
            MEMBERS: [list(document.place[:2]) for _, document in files],
        },
    )


def single(key: str, document: Document) -> Document:
    """Return a file that stays a document of its own, as one of a repository."""
    return replace(document, meta={**document.meta, _KEY: key})


def is_joined(document: Document) -> bool:
    """Tell whether a document is made of files of a repository."""
    return _BORDERS in document.meta


def apart(document: Document) -> Joined:
    """Return what `join` put together."""
    ends = accumulate(document.meta[_BORDERS], initial=0)
    name, *rest = [document.text[start:stop] for start, stop in pairwise(ends)]
    paths = [path[:-1] for path in rest[::2]]
    return Joined(name[:-1], list(zip(paths, rest[1::2], strict=True)))


def repository_key(document: Document) -> str | None:
    """Return what tells the repository of a document of repositories/chunks.py from others."""
    key = document.meta.get(_KEY)
    return key if isinstance(key, str) else None
