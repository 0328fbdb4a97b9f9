"""Which repository a file belongs to."""

from __future__ import annotations

from typing import NamedTuple

from data_pipeline.readers.archives import ARCHIVES
from data_pipeline.schema import Document

_SAMPLE_DEPTH = 2
"""A sample calls its files site/PACKAGE/..."""


class Membership(NamedTuple):
    """A file of a repository."""

    key: str
    """Tells repositories apart, those of all sources; that of a row is the same in any source."""
    name: str
    """Of the repository, as documents spell it."""
    path: str
    """Of the file within the repository."""


def membership(document: Document, depth: int) -> Membership | None:
    """Return the repository of a code document, or None.

    The first of these that there is: what a row says, the package, the archive, the folder. A row
    that does not name both its repository and its file belongs to none, wherever its table lies.

    Args:
        document: As it was read.
        depth: Folders below the path of the source that name a repository.
    """
    if document.domain != "code":
        return None
    meta, source, path = document.meta, document.source, document.path
    if meta.get("row") is not None:
        name, file = meta.get("repository"), meta.get("path")
        return Membership(f"row\0{name}", name, file) if name and file else None
    if package := meta.get("package"):
        name = package.rpartition("/")[2]
        return Membership(f"{source}\0{package}/", name, path.removeprefix(f"{package}/"))
    archive, mark, member = path.partition("!")
    if mark and (suffix := _archive_suffix(archive)):
        name = archive.rpartition("/")[2][: -len(suffix)]
        return Membership(f"{source}\0{archive}!", name, member)
    # `1:/a/b.py` lies below the second path of its source, `/a/b.py` below none
    number, colon, rest = path.partition(":/")
    root, below = (f"{number}:/", rest) if colon and number.isdecimal() else ("", path)
    folders = below.split("/")
    is_sample = source.endswith("-sample")
    depth = _SAMPLE_DEPTH if is_sample else depth
    if len(folders) <= depth or not folders[0]:
        return None
    name, inner = "/".join(folders[:depth]), "/".join(folders[depth:])
    return Membership(f"{source}\0{root}{name}/", folders[1] if is_sample else name, inner)


def _archive_suffix(path: str) -> str:
    """Return the suffix of an archive, "" for other files: their names may have a `!` too."""
    return next((suffix for suffix in ARCHIVES if path.lower().endswith(suffix)), "")
