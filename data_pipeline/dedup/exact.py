"""What makes two documents exact copies of each other."""

from __future__ import annotations


def normalise(data: bytes) -> bytes:
    """Return `data` with LF line ends, no blanks that end lines, no empty lines around it.

    Copies that differ in this only are the same document.
    """
    return b"\n".join(map(bytes.rstrip, data.splitlines())).strip(b"\n")
