"""What files are called within their source, wherever the source lies."""

from __future__ import annotations

from collections.abc import Sequence


class Places:
    """Names of files from the folders that a source was given.

    They make the ids of documents and what the corpus is named by, so that the same files in
    another folder give the same corpus.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        """Take the folders, in the order in which the source names them."""
        self._prefixes = [
            (f"{root.rstrip('/')}/", f"{number}:/" if number else "")
            for number, root in enumerate(dict.fromkeys(roots))
        ]

    def of(self, path: object) -> str:
        """Return what a file is called: `sub/a.py`, or `1:/sub/a.py` below the second folder; its
        whole path where it lies in none of them, as a file that a link leads to."""
        name = str(path)
        for root, prefix in self._prefixes:
            if name.startswith(root):
                return prefix + name[len(root) :]
            if name == root[:-1]:  # a URL may be that of a file
                return prefix + name.rpartition("/")[2]
        return name
